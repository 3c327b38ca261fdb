"""The things that `islet rim diff` compares, by how they are written.

A manifest (or a directory with one), a saved explanation, a lock file, a command line (as one word,
or in a file), or a RIM.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from islet_cli.errors import InputError
from islet_cli.fsutil import read_file
from islet_cli.rim.diff import Side
from islet_cli.rim.explain import explain
from islet_cli.rim.explanation import from_json
from islet_cli.rim.request import Request, of_command_line, of_manifest

_LIMIT = 64 << 20
_RIM = re.compile(r"(?:RIM: *)?([0-9a-fA-F]{64}|[0-9a-fA-F]{128})\s*", re.ASCII)
_MANIFEST_NAME = "realm.toml"


def rim_of(text: str) -> str | None:
    """The RIM that `text` is, as lower-case hex; None when it is something else."""
    match = _RIM.fullmatch(text)
    return match[1].lower() if match else None


def resolve(text: str, adjust: Callable[[Request], Request]) -> Side | Request | str:
    """Tell what `text` names: a saved explanation, something to measure, or a RIM.

    Args:
        text: As the user wrote it.
        adjust: Applied to a request, for the options of the command.

    Raises:
        InputError: It names nothing, or something malformed.
    """
    found = rim_of(text)
    if found is not None:
        return found
    path = Path(text)
    if path.is_dir():
        path /= _MANIFEST_NAME
    if path.is_file():
        return _of_file(path, adjust)
    if " " in text or text.startswith("-"):
        return adjust(of_command_line(_words(text, text)))
    raise InputError(
        f"{path}: no such file",
        code="no-such-file",
        hint="give a manifest, a saved explanation, a RIM, or a command line in quotes",
    )


def _of_file(path: Path, adjust: Callable[[Request], Request]) -> Side | Request | str:
    if path.suffix == ".toml":
        return adjust(of_manifest(path))
    data = read_file(path, limit=_LIMIT)
    if data.lstrip().startswith(b"{"):
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: {error}", code="explanation") from error
        saved = value.get("explanation", value) if isinstance(value, dict) else value
        return Side(from_json(saved, what=str(path)), live=False)
    try:
        text = data.decode().strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: neither a manifest, an explanation nor a command line", code="usage") from error
    return rim_of(text) or adjust(of_command_line(_words(text, str(path))))


def _words(text: str, what: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError as error:
        raise InputError(f"{what}: {error}", code="usage", hint="close the quotes") from error


def side_of(found: Side | Request) -> Side:
    """Measure what is not yet measured."""
    return found if isinstance(found, Side) else Side(explain(found))
