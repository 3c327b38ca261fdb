"""Who may enter in ra-tls mode: the appraiser behind the listener.

Everything is read from files, again at the next handshake after one changed, so that a realm published or a
platform pinned while the registry runs counts at once. What is missing or broken admits nobody.

Source: docs/threat-model.md; attestation.verify for the checks themselves.
"""

from __future__ import annotations

import glob
import json
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from islet_cli.attestation import reference
from islet_cli.attestation.challenge import realm_challenge
from islet_cli.attestation.cpak import Cpak, Kind, load_cpak
from islet_cli.attestation.reference import ReferenceValues
from islet_cli.attestation.verify import Verdict, verify_token
from islet_cli.errors import InputError, IsletError, VerificationError

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Policy:
    """What is admitted.

    Attributes:
        references: Files or glob patterns of reference values.
        cpaks: Pinned platform keys: what the operator says the platform is, and the file.
        allow_emulated: Whether evidence of an emulated platform counts at all.
    """

    references: Sequence[str]
    cpaks: Sequence[tuple[Kind, Path]]
    allow_emulated: bool = False


class _Files(Generic[T]):
    """Values read from files and kept until a file changes. A broken file is reported once and left out."""

    def __init__(self, load: Callable[[Path], T]) -> None:
        self._load = load
        self._known: dict[Path, tuple[tuple[int, ...], T | None]] = {}

    def read(self, path: Path) -> T | None:
        try:
            status = path.stat()
        except OSError:
            self._known.pop(path, None)
            return None
        stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            known = (stamp, self._try(path))
            self._known[path] = known
        return known[1]

    def _try(self, path: Path) -> T | None:
        try:
            return self._load(path)
        except IsletError as error:
            logger.error("%s is left out: %s (%s)", path, error.message, error.code)
            return None


class Admission:
    """Judges the evidence of one handshake after the other; safe for several threads."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._lock = threading.Lock()
        self._references = _Files(_load_pull_set)
        self._cpaks = [(_Files(_loader(kind)), path) for kind, path in policy.cpaks]

    def references(self) -> list[ReferenceValues]:
        """The reference values as the files stand now."""
        # Path.glob takes no absolute patterns.
        found = {match for pattern in self.policy.references for match in glob.glob(pattern)}  # noqa: PTH207
        paths = sorted(Path(match) for match in found)
        with self._lock:
            values = [self._references.read(path) for path in paths]
        return [value for value in values if value is not None]

    def cpaks(self) -> list[Cpak]:
        """The pinned platform keys as the files stand now."""
        with self._lock:
            values = [files.read(path) for files, path in self._cpaks]
        return [value for value in values if value is not None]

    def judge(self, token: bytes, nonce: bytes, spki: bytes) -> Verdict:
        """Verify a token against this connection's nonce and TLS key.

        Raises:
            VerificationError: The refusal, from the check that decided.
        """
        return verify_token(
            token,
            cpaks=self.cpaks(),
            challenge=realm_challenge(nonce, spki),
            references=self.references(),
            allow_emulated=self.policy.allow_emulated,
        )

    def appraise(self, token: bytes, nonce: bytes, spki: bytes) -> str:
        """`judge` for the listener: returns the realm's identity as JSON.

        Raises:
            IsletError: The refusal. A fault of our own refuses too (`internal`).
        """
        try:
            return json.dumps(identity_of(self.judge(token, nonce, spki)))
        except IsletError:
            raise
        except Exception as error:
            logger.exception("appraisal failed")
            raise VerificationError("the appraisal failed inside the registry; see its log", code="internal") from error


def identity_of(verdict: Verdict) -> dict[str, object]:
    """What the application layer and the log learn about an admitted realm."""
    whole = verdict.to_json()
    kept = ("reference", "rim", "hash_algo", "personalization", "instance_id", "emulated", "warning")
    return {key: whole[key] for key in kept if key in whole}


def _load_pull_set(path: Path) -> ReferenceValues:
    """Read reference values and keep the sets in which every REM is zero.

    Images are fetched before a REM is extended. A realm whose REMs are not zero has left that state, or its
    host made it say so; neither has business with the registry.
    """
    values = reference.load(path)
    sets = tuple(rems for rems in values.rems if not any(any(rem) for rem in rems))
    if values.kind == "running" or not sets:
        raise InputError(
            f"{path}: describes a realm that runs already, with REMs extended",
            code="not-a-pull-set",
            hint="use the reference-pull.json that `islet realm publish` writes",
        )
    return replace(values, rems=sets)


def _loader(kind: Kind) -> Callable[[Path], Cpak]:
    return lambda path: load_cpak(path, kind)
