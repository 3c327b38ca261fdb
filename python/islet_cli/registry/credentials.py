"""Who may push over TCP: HTTP Basic against an htpasswd file.

Source: RFC 7617; Apache's htpasswd format with bcrypt, the only one that container registries accept.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import os
import re
import secrets
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from islet_cli.errors import InputError, IsletError
from islet_cli.fsutil import os_error, read_file
from islet_cli.registry.answers import Refused

if TYPE_CHECKING:
    from starlette.requests import Request

logger = logging.getLogger(__name__)

_LINE = re.compile(r"([^:\x00-\x1f]{1,255}):(\$2[aby]\$[0-9]{2}\$[./A-Za-z0-9]{53})")
_MAX_FILE = 1 << 20
_MAX_PASSWORD = 72
"""What bcrypt looks at, in bytes."""
_CHALLENGE = {"WWW-Authenticate": 'Basic realm="islet", charset="UTF-8"'}
# The hash of nothing anybody knows: an unknown user costs as long as a wrong password.
_NOBODY = b"$2b$10$abcdefghijklmnopqrstuu5LoW5LGyXDNIDJPFzFvVTwCqXvZoHfm"


def parse_htpasswd(data: bytes, *, what: str) -> dict[str, bytes]:
    """Read an htpasswd file: users and bcrypt hashes.

    Raises:
        InputError: `htpasswd_invalid`: a line is none, a user stands twice, or there is nobody.
    """
    users: dict[str, bytes] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or match[1] in users:
            problem = "is not USER:BCRYPT-HASH" if match is None else "names a user for the second time"
            raise InputError(
                f"{what}: line {number} {problem}",
                code="htpasswd_invalid",
                hint="make it with: htpasswd -B -c FILE USER",
            )
        users[match[1]] = match[2].encode()
    if not users:
        raise InputError(f"{what}: names nobody", code="htpasswd_invalid", hint="add: htpasswd -B FILE USER")
    return users


class Htpasswd:
    """Lets those in whom a file names. It is read again when it changes; a broken one lets nobody in.

    Implements `app.Guard`; safe for several threads.

    Raises:
        InputError: The file cannot be read, is malformed, or others may change it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._key = secrets.token_bytes(32)
        self._good: set[bytes] = set()
        self._stamp, self._users = _stamp(path), _load(path)

    def require(self, request: Request) -> None:
        """Check a request's credential.

        Raises:
            Refused: 401 `UNAUTHORIZED`.
        """
        given = _basic(request.headers.get("Authorization", ""))
        if given is None or not self._holds(*given):
            raise Refused(401, "UNAUTHORIZED", "pushing needs a user and a password", _CHALLENGE)

    def _holds(self, user: str, password: bytes) -> bool:
        import bcrypt

        users = self._current()
        stored = users.get(user, _NOBODY)
        # The slow hash is paid once for each credential; what is kept is worth nothing without this process.
        seal = hmac.digest(self._key, b"\0".join((stored, user.encode(), password)), hashlib.sha256)
        with self._lock:
            if seal in self._good and user in users:
                return True
        good = bcrypt.checkpw(password[:_MAX_PASSWORD], stored) and user in users
        if good:
            with self._lock:
                self._good.add(seal)
        return good

    def _current(self) -> dict[str, bytes]:
        with self._lock:
            try:
                stamp = _stamp(self._path)
                if stamp != self._stamp:
                    self._users, self._stamp = _load(self._path), stamp
                    self._good.clear()
            except IsletError as error:
                logger.error("nobody may push: %s (%s)", error.message, error.code)
                self._users, self._stamp = {}, None
            return self._users


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError as error:
        raise os_error(error, path) from error
    if status.st_mode & 0o022 or status.st_uid not in (0, os.geteuid()):
        raise InputError(
            f"{path}: others may change it", code="not-private", hint=f"run: chown $USER {path}; chmod go-w {path}"
        )
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _load(path: Path) -> dict[str, bytes]:
    return parse_htpasswd(read_file(path, limit=_MAX_FILE), what=str(path))


def _basic(header: str) -> tuple[str, bytes] | None:
    """User and password of an Authorization header."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(value.strip(), validate=True).partition(b":")
        return (user.decode("utf-8"), password) if colon and b"\0" not in password else None
    except (binascii.Error, ValueError):
        return None
