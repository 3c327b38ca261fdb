"""Attestation tokens: for the registry's handshake, and for the host.

A challenge of the host never reaches the monitor as it is, else the host could choose the hash of a TLS key of its
own and enter a registry as this realm.
"""

from __future__ import annotations

import threading
from pathlib import Path

from islet_cli.appmanager.rsi import Rsi
from islet_cli.attestation.challenge import HOST_TOKEN_MARKER, host_challenge
from islet_cli.errors import VerificationError

REM3 = 4
"""Register index of REM3 in the monitor's numbering."""


class Attester:
    """Asks the monitor for tokens.

    Args:
        rsi: The monitor.
        raw_host_challenges: The policy's `token_challenge = "raw"`: the host's challenge is used as it is, after
            REM3 was marked; from then on no token is made for a registry until the next boot.
    """

    def __init__(self, rsi: Rsi, *, raw_host_challenges: bool = False) -> None:
        self._rsi = rsi
        self._raw = raw_host_challenges
        self._lock = threading.Lock()
        self._marked = False

    def for_registry(self, challenge: bytes) -> bytes:
        """A token for an RA-TLS handshake.

        Raises:
            VerificationError: A raw host challenge ended RA-TLS for this boot (`ra-tls-ended`).
            RsiError: The monitor refused.
        """
        with self._lock:
            if self._marked:
                raise VerificationError("RA-TLS ended with the host's raw challenge; reboot first", code="ra-tls-ended")
            return self._rsi.attestation_token(challenge)

    def for_host(self, challenge: bytes) -> bytes:
        """A token for the host's 64-byte challenge.

        Raises:
            InputError: The challenge has another length.
            RsiError: The monitor refused.
        """
        bound = host_challenge(challenge)
        with self._lock:
            if not self._raw:
                return self._rsi.attestation_token(bound)
            if not self._marked:
                self._rsi.measurement_extend(REM3, HOST_TOKEN_MARKER)
                self._marked = True
            return self._rsi.attestation_token(challenge)


class FileAttester:
    """Gives a ready-made token whatever the challenge; for trying out a registry without a monitor."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def for_registry(self, challenge: bytes) -> bytes:
        """The file's bytes."""
        return self.for_host(challenge)

    def for_host(self, _challenge: bytes) -> bytes:
        """The file's bytes."""
        from islet_cli.fsutil import read_file

        return read_file(self._path, limit=1 << 16)
