"""What the exec cases leave open, and the reading of the image's user database."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from islet_cli.appmanager.execconfig import MAX_ID, USER_FILE_LIMIT, read_user_files, resolve
from islet_cli.errors import VerificationError

RUN = {"Entrypoint": ["/a"]}


def _refused(config: object, passwd: bytes | None = None, group: bytes | None = None) -> str:
    with pytest.raises(VerificationError) as caught:
        resolve(config, passwd, group)  # type: ignore[arg-type]
    return caught.value.code


@pytest.mark.parametrize(
    ("text", "number"),
    [("SIGCLD", 17), ("sigpoll", 29), ("rtmin", 34), ("SIGRTMAX", 64), ("015", 15), ("SIGRTMIN+30", 64)],
)
def test_stop_signals(text: str, number: int) -> None:
    assert resolve(RUN | {"StopSignal": text}, None, None).stop_signal == number


@pytest.mark.parametrize(
    "text",
    ["SIG", "SIG_IGN", "SIG_DFL", "RTMIN-1", "SIGRTMAX+1", "RTMIN+31", "RTMIN+", "-9", "9" * 10_000, "¹", "RTMIN+¹"],
)
def test_unknown_stop_signals(text: str) -> None:
    assert _refused(RUN | {"StopSignal": text}) == "exec_config_invalid"


def test_ids_of_the_user_database_are_checked() -> None:
    big = MAX_ID + 1
    assert _refused(RUN | {"User": "u"}, f"u:x:1:{big}::/:".encode()) == "exec_config_invalid"
    assert _refused(RUN | {"User": "u"}, b"u:x:1:1::/:", f"g:x:{big}:u".encode()) == "exec_config_invalid"
    assert _refused(RUN | {"User": "1:g"}, None, f"g:x:{big}:".encode()) == "exec_config_invalid"
    assert _refused(RUN | {"User": "9" * 10_000}) == "exec_config_invalid"


def test_the_largest_file_lines_are_harmless() -> None:
    passwd = b"u:x:" + b"9" * 500_000 + b":1::/:\nu:x:5:6::/home:\n"
    assert _refused(RUN | {"User": "u"}, passwd) == "exec_config_invalid"


@pytest.mark.parametrize("config", [[], "x", {"Entrypoint": ["\ud800"]}, {"Entrypoint": [1]}, RUN | {"User": 5}])
def test_wrong_types(config: object) -> None:
    assert _refused(config) == "exec_config_invalid"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    return tmp_path


def _read(root: Path) -> tuple[bytes | None, bytes | None]:
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        return tuple(read_user_files(descriptor))
    finally:
        os.close(descriptor)


def test_links_resolve_inside_the_image(root: Path) -> None:
    (root / "etc" / "passwd").symlink_to("/usr/passwd")
    (root / "usr").mkdir()
    (root / "usr" / "passwd").write_text("inside")
    (root / "etc" / "group").symlink_to("../../../../../../../../etc/group.none")
    assert _read(root) == (b"inside", None)


def test_the_hosts_database_is_out_of_reach(root: Path) -> None:
    (root / "etc").rmdir()
    (root / "etc").symlink_to("/etc")
    with pytest.raises(VerificationError) as caught:
        _read(root)
    assert caught.value.code == "exec_config_invalid"


def test_odd_files_are_refused(root: Path) -> None:
    passwd = root / "etc" / "passwd"
    os.mkfifo(passwd)
    with pytest.raises(VerificationError):
        _read(root)
    passwd.unlink()
    passwd.write_bytes(b"x" * USER_FILE_LIMIT)
    assert _read(root)[0] == b"x" * USER_FILE_LIMIT
    passwd.write_bytes(b"x" * (USER_FILE_LIMIT + 1))
    with pytest.raises(VerificationError) as caught:
        _read(root)
    assert caught.value.code == "exec_config_invalid"
