"""The platform's two interfaces under arbitrary requests: always an answer, never a crash, nothing given away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from islet_cli import framing
from islet_cli.attestation import rem
from islet_cli.launch.plan import LaunchPlan
from islet_cli.platform import hes, rsi
from islet_cli.platform.management import Channels, Session
from islet_cli.platform.rmm import Realm, Rmm, State

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**65), 2**65), st.floats(allow_nan=False), st.text(max_size=9)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=12,
)
RSI_NAMES = [
    "Version",
    "RealmMetadata",
    "MeasurementRead",
    "MeasurementExtend",
    "AttestationToken",
    "SealingKey",
]
MANAGEMENT_NAMES = ["RealmCreate", "RealmSetMetadata", "RealmActivate", "RealmStatus", "RealmDestroy", "Version"]
MEMBERS = st.dictionaries(
    st.sampled_from(["index", "data", "challenge", "flags", "svn", "rd", "metadata", "launch"]),
    st.one_of(JSON, st.integers(0, 5), st.lists(st.integers(0, 255), max_size=66)),
    max_size=4,
)


@dataclass(frozen=True)
class Measured:
    rim: bytes = b"\x11" * 32
    bootargs: str = ""


@pytest.fixture(scope="module")
def rmm(tmp_path_factory: pytest.TempPathFactory) -> Rmm:
    return Rmm(hes.create_identity(tmp_path_factory.mktemp("identity") / "platform"))


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    plan = LaunchPlan(
        kernel="/k", kernel_sha256=None, initramfs="/i", initramfs_sha256=None, cmdline="", vcpus=1, memory_mib=256
    )
    made = Realm("0" * 16, plan, Measured(), ())  # type: ignore[arg-type]
    made._state = State.ACTIVE
    yield made


def requests(names: list[str]) -> st.SearchStrategy[Any]:
    return st.one_of(
        JSON, st.sampled_from(names), st.sampled_from(names).flatmap(lambda name: MEMBERS.map(lambda got: {name: got}))
    )


@given(request_=requests(RSI_NAMES))
def test_every_realm_request_is_answered(rmm: Rmm, realm: Realm, request_: Any) -> None:
    answer = rsi.handle(rmm, realm, request_)
    framing.encode(answer, limit=rsi.FRAME_LIMIT)
    if isinstance(answer, dict) and "Error" in answer:
        assert answer["Error"]["errno"] in {22, 14, 9}


@given(request_=requests(MANAGEMENT_NAMES))
def test_every_management_request_is_answered(rmm: Rmm, tmp_path_factory: Any, request_: Any) -> None:
    session = Session(rmm, Channels(rmm, Path("/nonexistent")), lambda: None)
    answer = session.handle(request_)
    framing.encode(answer.value)
    assert answer.files == ()
    if "Error" in answer.value:
        assert answer.value["Error"]["code"] in {"input", "no-such-realm", "file"}


@given(events=st.lists(st.tuples(st.integers(1, 4), st.binary(min_size=1, max_size=64)), max_size=8))
def test_extensions_follow_the_formula_and_nothing_resets_them(rmm: Rmm, realm: Realm, events: Any) -> None:
    for index, data in events:
        before = realm.read_measurement(index)
        others = [realm.read_measurement(other) for other in range(5) if other != index]
        assert rsi.handle(rmm, realm, {"MeasurementExtend": {"index": index, "data": list(data)}}) == "Ok"
        assert realm.read_measurement(index) == rem.extend(before, data, "sha256").ljust(64, b"\0")
        assert [realm.read_measurement(other) for other in range(5) if other != index] == others


@given(flags=st.integers(0, 2**64 - 1), other=st.integers(0, 2**64 - 1))
def test_sealing_keys_differ_by_flags_and_are_stable(rmm: Rmm, realm: Realm, flags: int, other: int) -> None:
    def key(value: int) -> Any:
        return rsi.handle(rmm, realm, {"SealingKey": {"flags": value, "svn": 0}})["SealingKey"]

    assert key(flags) == key(flags)
    assert (key(flags) == key(other)) is (flags == other)
