"""From an image's configuration to the process that will run: pure functions on bytes of the image.

Nothing of the realm's own users, environment or directories enters: what the image does not say gets a
fixed value.

Source: OCI image-spec 1.1, config.md, "Properties" and conversion.md; CVE-2016-3697 for numeric users.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from islet_cli.errors import VerificationError

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_ID = 2**32 - 2
"""Largest user or group id; 2^32-1 means "leave as it is" to the kernel."""

USER_FILE_LIMIT = 1 << 20
"""Largest passwd or group file, bytes."""

# As C programs see them: the library keeps the first two real-time signals for itself.
_SIGRTMIN, _SIGRTMAX = 34, 64


@dataclass(frozen=True)
class ExecPlan:
    """A process, inside the image's root.

    Attributes:
        argv: Program and arguments; a program without a slash is searched in the image along its `PATH`.
        env: `NAME=value`, complete.
        uid, gid: Ids of the process.
        groups: Supplementary groups, ascending, without `gid`.
        cwd: Absolute, without `..`; still to be resolved inside the root, and made when missing.
        stop_signal: Number of the signal that asks it to end.
    """

    argv: list[str]
    env: list[str]
    uid: int
    gid: int
    groups: list[int]
    cwd: str
    stop_signal: int


class UserFiles(NamedTuple):
    """`/etc/passwd` and `/etc/group` of an image; None when absent."""

    passwd: bytes | None
    group: bytes | None


def read_user_files(root_fd: int) -> UserFiles:
    """Read the user database of the image whose root `root_fd` is, links resolved inside that root.

    Raises:
        VerificationError: One of them is no regular file, or larger than 1 MiB (`exec_config_invalid`).
    """
    from islet_cli import _native

    root = Path(f"/proc/self/fd/{root_fd}")

    def read(path: bytes) -> bytes | None:
        try:
            return _native.layers.open_in_root(root, path, USER_FILE_LIMIT)
        except VerificationError as error:
            raise VerificationError(f"the image's user database: {error}", code="exec_config_invalid") from error

    return UserFiles(read(b"etc/passwd"), read(b"etc/group"))


def resolve(config: dict[str, Any] | None, passwd: bytes | None, group: bytes | None) -> ExecPlan:
    """Turn the `config` member of an image configuration into a process.

    Args:
        config: Parsed JSON; None counts as empty.
        passwd: Content of the image's `/etc/passwd`, None when absent.
        group: Content of the image's `/etc/group`, None when absent.

    Raises:
        VerificationError: `exec_config_invalid`, `user_unknown` or `group_unknown`.
    """
    config = {} if config is None else config
    if not isinstance(config, dict):
        raise _invalid("config is no object")
    argv = _strings(config, "Entrypoint") + _strings(config, "Cmd")
    if not argv or not argv[0]:
        raise _invalid("Entrypoint and Cmd name no program")
    user = _user(_string(config, "User"), _lines(passwd), _lines(group))
    return ExecPlan(
        argv=argv,
        env=_environment(_strings(config, "Env"), user.home),
        uid=user.uid,
        gid=user.gid,
        groups=user.groups,
        cwd=_working_directory(_string(config, "WorkingDir")),
        stop_signal=_stop_signal(_string(config, "StopSignal")),
    )


def _invalid(reason: str) -> VerificationError:
    return VerificationError(f"the image cannot be started: {reason}", code="exec_config_invalid")


def _strings(config: dict[str, Any], key: str) -> list[str]:
    value = config.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _invalid(f"{key} is no list of strings")
    for item in value:
        _check_text(item, key)
    return list(value)


def _string(config: dict[str, Any], key: str) -> str:
    value = config.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _invalid(f"{key} is no string")
    _check_text(value, key)
    return value


def _check_text(text: str, key: str) -> None:
    """Refuse what the kernel cannot be given: a NUL, or half of a surrogate pair."""
    if "\0" in text:
        raise _invalid(f"{key} has a NUL in it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _invalid(f"{key} is no valid Unicode") from None


def _environment(items: list[str], home: str) -> list[str]:
    """First position, last value; `PATH` and `HOME` are added when absent."""
    values: dict[str, str] = {}
    for item in items:
        name, _, value = item.partition("=")
        if not name:
            raise _invalid("Env has an item without a name")
        values[name] = value
    values.setdefault("PATH", DEFAULT_PATH)
    values.setdefault("HOME", home or "/")
    return [f"{name}={value}" for name, value in values.items()]


def _working_directory(path: str) -> str:
    if not path:
        return "/"
    if not path.startswith("/"):
        raise _invalid(f"WorkingDir {path!r} is relative")
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def _stop_signal(text: str) -> int:
    """Number of a signal given as number, name with or without `SIG`, `SIGRTMIN+n` or `SIGRTMAX-n`."""
    if not text:
        return int(signal.SIGTERM)
    name = text.upper().removeprefix("SIG")
    if text.isascii() and text.isdigit():
        # A longer number is out of range whatever it is, and long ones are dear to convert.
        number = int(text) if len(text) <= 4 else 0
    elif name.startswith(("RTMIN", "RTMAX")):
        number = _realtime(name)
    else:
        # SIG_IGN and the like are members of the module too, but no signals.
        found = getattr(signal, f"SIG{name}", None)
        number = int(found) if isinstance(found, signal.Signals) else 0
    if not 1 <= number <= _SIGRTMAX:
        raise _invalid(f"StopSignal {text!r} is unknown")
    return number


def _realtime(name: str) -> int:
    base, sign = (_SIGRTMIN, "+") if name.startswith("RTMIN") else (_SIGRTMAX, "-")
    offset = name[5:]
    if not offset:
        return base
    digits = offset[1:]
    if offset[0] != sign or not (digits.isascii() and digits.isdigit()) or len(digits) > 2:
        return 0
    number = base + int(digits) if sign == "+" else base - int(digits)
    return number if _SIGRTMIN <= number <= _SIGRTMAX else 0


class _User(NamedTuple):
    uid: int
    gid: int
    groups: list[int]
    home: str


class _Account(NamedTuple):
    name: bytes
    uid: int
    gid: int
    home: str


def _lines(data: bytes | None) -> list[list[bytes]]:
    """Fields of the lines of a colon-separated file."""
    if data is None:
        return []
    return [line.removesuffix(b"\r").split(b":") for line in data.split(b"\n")]


def _number(text: bytes) -> int | None:
    """A decimal number of any size, or None; at most the digits that can matter are converted."""
    if not text.isdigit():
        return None
    significant = text.lstrip(b"0") or b"0"
    return int(significant) if len(significant) <= 10 else MAX_ID + 2


def _accounts(passwd: list[list[bytes]]) -> list[_Account]:
    """The well-formed lines of passwd: at least the fields up to the home directory, with numeric ids."""
    out = []
    for fields in passwd:
        if len(fields) < 6 or not fields[0]:
            continue
        uid, gid = _number(fields[2]), _number(fields[3])
        if uid is not None and gid is not None:
            out.append(_Account(fields[0], uid, gid, fields[5].decode("utf-8", "replace").replace("\0", "")))
    return out


def _groups(group: list[list[bytes]]) -> list[tuple[bytes, int, list[bytes]]]:
    """Name, id and members of the well-formed lines of group."""
    out = []
    for fields in group:
        number = _number(fields[2]) if len(fields) >= 4 else None
        if number is not None and fields[0]:
            out.append((fields[0], number, fields[3].split(b",")))
    return out


def _user(text: str, passwd: list[list[bytes]], group: list[list[bytes]]) -> _User:
    """Resolve `user`, `uid`, `user:group`, … in the image's own database; digits are always numbers."""
    accounts, groups = _accounts(passwd), _groups(group)
    user, *rest = text.encode("utf-8").split(b":")
    if text and (len(rest) > 1 or not user or b"" in rest):
        raise _invalid(f"User {text!r} is malformed")
    account = _account(user or b"0", accounts)
    if rest:
        return _User(account.uid, _group_id(rest[0], groups), [], account.home)
    gid = _checked_id(account.gid)
    if not text or not account.name:
        return _User(account.uid, 0 if not text else gid, [], account.home)
    listed = {number for _, number, members in groups if account.name in members}
    for number in listed:
        _checked_id(number)
    return _User(account.uid, gid, sorted(listed - {gid}), account.home)


def _account(user: bytes, accounts: list[_Account]) -> _Account:
    """The account that a name or number means; a number without one gets group 0 and no name."""
    number = _number(user)
    if number is None:
        for account in accounts:
            if account.name == user:
                return account._replace(uid=_checked_id(account.uid))
        shown = user.decode("utf-8", "replace")
        raise VerificationError(f"the image has no user {shown!r}", code="user_unknown")
    _checked_id(number)
    for account in accounts:
        if account.uid == number:
            return account
    return _Account(b"", number, 0, "/")


def _group_id(text: bytes, groups: list[tuple[bytes, int, list[bytes]]]) -> int:
    number = _number(text)
    if number is not None:
        return _checked_id(number)
    for name, found, _ in groups:
        if name == text:
            return _checked_id(found)
    shown = text.decode("utf-8", "replace")
    raise VerificationError(f"the image has no group {shown!r}", code="group_unknown")


def _checked_id(number: int) -> int:
    if number > MAX_ID:
        raise _invalid(f"id {number} is too large")
    return number
