"""The decision table of installing, starting and refusing."""

from __future__ import annotations

import itertools

import pytest

from islet_cli.appmanager.upgrade import (
    Action,
    Fetched,
    Installed,
    UpgradePolicy,
    Version,
    check_rollback,
    decide,
    parse_time,
)
from islet_cli.errors import InputError, IsletError, OperationError, UnavailableError, VerificationError

V1 = Version(3, "2024-01-01T00:00:00Z")
V2 = Version(4, "2024-06-01T00:00:00Z")
VENDOR = (b"key", b"certificate")
INSTALLED = Installed(b"2", VENDOR, V2)
OLDER, SAME, NEWER = (Fetched(h, VENDOR, v) for h, v in ((b"1", V1), (b"2", V2), (b"3", V2)))

UNREACHABLE = UnavailableError("no route", code="registry_unreachable")
BAD = VerificationError("digest", code="digest_mismatch")


def _status(status: int) -> IsletError:
    return OperationError("answer", code="http_status", status=status)


def test_the_table() -> None:
    ordinary = UpgradePolicy()
    assert decide(NEWER, None, ordinary) is Action.INSTALL
    assert decide(SAME, INSTALLED, ordinary) is Action.LAUNCH_INSTALLED
    assert decide(NEWER, INSTALLED, ordinary) is Action.INSTALL
    assert decide(OLDER, INSTALLED, UpgradePolicy(allow_rollback=True)) is Action.INSTALL
    assert decide(OLDER, INSTALLED, UpgradePolicy(on_refusal="launch-installed")) is Action.LAUNCH_INSTALLED
    with pytest.raises(VerificationError) as caught:
        decide(OLDER, INSTALLED, ordinary)
    assert caught.value.code == "rollback_refused"


def test_another_vendor_is_another_image() -> None:
    assert decide(Fetched(b"2", (b"other", b"certificate"), V2), INSTALLED, UpgradePolicy()) is Action.INSTALL


@pytest.mark.parametrize(
    "failure", [BAD, InputError("bad", code="manifest_invalid"), _status(418)], ids=lambda e: e.code
)
def test_an_invalid_image_never_falls_back(failure: IsletError) -> None:
    for installed, offline in itertools.product((None, INSTALLED), ("never", "allow", "always")):
        with pytest.raises(IsletError) as caught:
            decide(failure, installed, UpgradePolicy(offline=offline))  # type: ignore[arg-type]
        assert caught.value is failure


@pytest.mark.parametrize("failure", [UNREACHABLE, _status(500), _status(503), _status(429)], ids=str)
def test_away(failure: IsletError) -> None:
    assert decide(failure, INSTALLED, UpgradePolicy()) is Action.LAUNCH_OFFLINE
    with pytest.raises(IsletError):
        decide(failure, INSTALLED, UpgradePolicy(offline="never"))
    with pytest.raises(IsletError) as caught:
        decide(failure, None, UpgradePolicy())
    assert caught.value.code == "registry_unreachable"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_denied(status: int) -> None:
    assert decide(_status(status), INSTALLED, UpgradePolicy(offline="always")) is Action.LAUNCH_OFFLINE
    with pytest.raises(IsletError):
        decide(_status(status), INSTALLED, UpgradePolicy())


def test_rollback_order() -> None:
    check_rollback(None, V1)
    check_rollback(V2, V2)
    check_rollback(V2, Version(5, None))
    for new in (Version(4, "2024-05-31T23:59:59.9Z"), Version(4, None), Version(3, "2030-01-01T00:00:00Z")):
        with pytest.raises(VerificationError):
            check_rollback(V2, new)
        check_rollback(V2, new, allow_rollback=True)
    assert V2.highest(V1) == V2 == V1.highest(V2)


def test_times() -> None:
    assert parse_time("1970-01-01T00:00:01.5Z") == (1, 500_000_000)
    assert parse_time("1970-01-01T02:00:00+01:30") == (1800, 0)
    assert parse_time("2024-02-29T23:59:60-00:01")[0] == 1709251260
    assert parse_time(None) < parse_time("0001-01-01T00:00:00Z")
    for bad in (
        "",
        "2024-02-30T00:00:00Z",
        "2024-01-01",
        "2024-01-01T00:00:00",
        "0000-01-01T00:00:00Z",
        "2024-01-01T24:00:00Z",
    ):
        with pytest.raises(VerificationError) as caught:
            parse_time(bad)
        assert caught.value.code == "config_invalid"
