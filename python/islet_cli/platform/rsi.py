"""The realm services of the emulated platform: one request of a realm, one answer.

Error numbers are those that the Linux driver of a real realm gives: EINVAL (length, unknown request), EFAULT
(index, svn above the metadata's), EBADF (the realm is not ACTIVE, or has no metadata), ENXIO (anything else).

Source: RMM specification, RSI calls; linux-rsi (`/dev/rsi`).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Any

from islet_cli.attestation.challenge import CHALLENGE_SIZE
from islet_cli.errors import InputError
from islet_cli.platform import messages
from islet_cli.platform.rmm import NotActiveError, Realm, Rmm

HELLO = b"ISLET-RSI-OPEN\n\0"
FRAME_LIMIT = 65536
REQUEST_LIMIT = 4096
VERSION = 65536
"""Interface version 1.0: major in bits 30..16, minor in bits 15..0."""

_MAX_EXTENSION = 64
_LOG = logging.getLogger(__name__)
_UNITS = frozenset({"Version", "RealmMetadata"})
_STRUCTS = {
    "MeasurementRead": ("index",),
    "MeasurementExtend": ("index", "data"),
    "AttestationToken": ("challenge",),
    "SealingKey": ("flags", "svn"),
}


class _RefusedError(Exception):
    """A request ends with this error number."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


def error_answer(number: int, message: str) -> dict[str, Any]:
    """The answer that refuses a request."""
    return {"Error": {"errno": number, "message": message}}


def handle(rmm: Rmm, realm: Realm, request: Any) -> Any:
    """Answer one request of `realm`. Never raises."""
    try:
        name, members = messages.variant(request, _UNITS, _STRUCTS)
        return _HANDLERS[name](rmm, realm, members)
    except _RefusedError as error:
        return error_answer(error.number, str(error))
    except NotActiveError as error:
        return error_answer(errno.EBADF, error.message)
    except InputError as error:
        return error_answer(errno.EINVAL, error.message)
    except Exception:
        _LOG.exception("realm %s: a realm service failed", realm.rd)
        return error_answer(errno.ENXIO, "the monitor failed")


def _version(_rmm: Rmm, _realm: Realm, _members: dict[str, Any]) -> Any:
    return {"Version": VERSION}


def _index(members: dict[str, Any], lowest: int) -> int:
    index = messages.unsigned(members["index"], "index")
    if not lowest <= index <= 4:
        raise _RefusedError(errno.EFAULT, f"index {index} is not {lowest} to 4")
    return index


def _read(_rmm: Rmm, realm: Realm, members: dict[str, Any]) -> Any:
    return {"Measurement": list(realm.read_measurement(_index(members, 0)))}


def _extend(_rmm: Rmm, realm: Realm, members: dict[str, Any]) -> Any:
    data = messages.octets(members["data"], "data")
    if not 1 <= len(data) <= _MAX_EXTENSION:
        raise _RefusedError(errno.EINVAL, f"an extension has 1 to {_MAX_EXTENSION} bytes, not {len(data)}")
    realm.extend_measurement(_index(members, 1), data)
    return "Ok"


def _token(rmm: Rmm, realm: Realm, members: dict[str, Any]) -> Any:
    challenge = messages.octets(members["challenge"], "challenge")
    if len(challenge) != CHALLENGE_SIZE:
        raise _RefusedError(errno.EINVAL, f"a challenge has {CHALLENGE_SIZE} bytes, not {len(challenge)}")
    return {"AttestationToken": list(rmm.token(realm, challenge))}


def _sealing_key(rmm: Rmm, realm: Realm, members: dict[str, Any]) -> Any:
    flags, svn = messages.unsigned(members["flags"], "flags"), messages.unsigned(members["svn"], "svn")
    try:
        return {"SealingKey": list(rmm.sealing_key(realm, flags, svn))}
    except InputError as error:
        if error.code == "svn":
            raise _RefusedError(errno.EFAULT, error.message) from error
        raise _RefusedError(errno.ENXIO, error.message) from error


def _metadata(_rmm: Rmm, realm: Realm, _members: dict[str, Any]) -> Any:
    page = realm.metadata_page()
    if page is None:
        raise _RefusedError(errno.EBADF, "the realm has no metadata block")
    return {"RealmMetadata": list(page)}


_HANDLERS: dict[str, Callable[[Rmm, Realm, dict[str, Any]], Any]] = {
    "Version": _version,
    "RealmMetadata": _metadata,
    "MeasurementRead": _read,
    "MeasurementExtend": _extend,
    "AttestationToken": _token,
    "SealingKey": _sealing_key,
}
