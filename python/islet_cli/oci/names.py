"""Grammars of repository names and tags.

Source: OCI distribution-spec 1.1, "Pulling manifests".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from islet_cli.errors import InputError
from islet_cli.oci.digest import parse_digest

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
MAX_REPOSITORY = 255


def is_tag(text: str) -> bool:
    """Whether the whole of `text` is a tag."""
    return _TAG.fullmatch(text) is not None


def is_repository(text: str) -> bool:
    """Whether the whole of `text` is a repository name."""
    return len(text) <= MAX_REPOSITORY and _REPOSITORY.fullmatch(text) is not None


def check_tag(text: str) -> str:
    """Return `text`, which must be a tag.

    Raises:
        InputError: `tag_invalid`. A full image name is recognised and the plain tag suggested.
    """
    if is_tag(text):
        return text
    tail = text.rpartition(":")[2]
    hint = (
        f"{text!r} is a full image name; use the plain tag, as with --tag {tail}"
        if ("/" in text or ":" in text) and is_tag(tail)
        else "letters, digits, '_', '.', '-'; at most 128; not starting with '.' or '-'"
    )
    raise InputError(f"{text[:200]!r} is not a tag", code="tag_invalid", hint=hint)


def check_repository(text: str) -> str:
    """Return `text`, which must be a repository name.

    Raises:
        InputError: `name_invalid`.
    """
    if is_repository(text):
        return text
    raise InputError(
        f"{text[:300]!r} is not a repository name",
        code="name_invalid",
        hint="lower-case letters and digits, joined by '.', '_', '__', '-' or '/'; at most 255 characters",
    )


def fit_repository(text: str) -> str:
    """Make a repository name of one component out of any text, such as a file name.

    Raises:
        InputError: Nothing usable is in it (`name_invalid`).
    """
    lowered = re.sub(r"[^a-z0-9._-]+", "-", text.lower())
    # A separator is '.', '_', '__' or dashes; any other mixture of them becomes one dash.
    fitted = re.sub(r"[._-]+", lambda run: run[0] if re.fullmatch(r"\.|__?|-+", run[0]) else "-", lowered)
    return check_repository(fitted.strip("._-")[:128].rstrip("._-"))


@dataclass(frozen=True)
class RemoteImage:
    """An image in a registry.

    Attributes:
        address: `HOST[:PORT]`.
        repository: Its name there.
        reference: Tag or digest.
    """

    address: str
    repository: str
    reference: str


REMOTE_PREFIX = "docker://"


def is_remote(text: str) -> bool:
    """Whether `text` names an image in a registry rather than a file."""
    return text.startswith(REMOTE_PREFIX)


def parse_remote(text: str) -> RemoteImage:
    """Read `[docker://]HOST[:PORT]/REPOSITORY[:TAG|@DIGEST]`; the default tag is `latest`.

    Raises:
        InputError: `name_invalid`, `tag_invalid`, `digest_invalid`.
    """
    address, slash, rest = text.removeprefix(REMOTE_PREFIX).partition("/")
    if not slash or not address:
        raise InputError(
            f"{text!r} does not name a registry", code="name_invalid", hint="docker://HOST[:PORT]/NAME:TAG"
        )
    name, at, digest = rest.partition("@")
    if at:
        return RemoteImage(address, check_repository(name), parse_digest(digest, what=text))
    name, _, tag = rest.partition(":")
    return RemoteImage(address, check_repository(name), check_tag(tag or "latest"))
