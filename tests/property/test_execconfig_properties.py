"""Whatever an image says about its process, the answer is a plan that the kernel can carry out, or a refusal."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from islet_cli.appmanager.execconfig import MAX_ID, ExecPlan, resolve
from islet_cli.errors import VerificationError

_CODES = {"exec_config_invalid", "user_unknown", "group_unknown"}
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_ID = st.integers(0, 5) | st.integers(MAX_ID - 1, MAX_ID + 2)
_NAME = st.sampled_from(["a", "b", "5", "", "root"])
_FIELD = st.one_of(_NAME, _ID.map(str), st.text(":,\n\r x", max_size=3))
_FILE = st.none() | st.lists(st.lists(_FIELD, max_size=8).map(":".join)).map(lambda lines: "\n".join(lines).encode())
_CONFIG = st.fixed_dictionaries(
    {"Entrypoint": st.just(["/a"]) | _JSON},
    optional={
        "Cmd": st.lists(st.text(max_size=4), max_size=3) | _JSON,
        "Env": st.lists(st.text("AB=", max_size=4), max_size=4) | _JSON,
        "User": st.lists(_FIELD, min_size=1, max_size=3).map(":".join) | _JSON,
        "WorkingDir": st.text("/.ab", max_size=12) | _JSON,
        "StopSignal": st.sampled_from(["SIGTERM", "rtmin+3", "9", "x"]) | _JSON,
    },
)


def _check(plan: ExecPlan) -> None:
    assert plan.argv[0]
    assert all("\0" not in text for text in (*plan.argv, *plan.env, plan.cwd))
    names = [item.partition("=")[0] for item in plan.env]
    assert len(set(names)) == len(names)
    assert {"PATH", "HOME"} <= set(names)
    assert all(0 <= number <= MAX_ID for number in (plan.uid, plan.gid, *plan.groups))
    assert plan.groups == sorted(set(plan.groups) - {plan.gid})
    assert plan.cwd.startswith("/")
    assert ".." not in plan.cwd.split("/")
    assert 1 <= plan.stop_signal <= 64


@given(_CONFIG, _FILE, _FILE)
def test_a_plan_or_a_refusal(config: dict[str, object], passwd: bytes | None, group: bytes | None) -> None:
    try:
        plan = resolve(config, passwd, group)
    except VerificationError as error:
        assert error.code in _CODES
        return
    _check(plan)


@given(st.binary(max_size=200), st.binary(max_size=200), st.sampled_from(["root", "0", "a:b", "7:a"]))
def test_noise_as_user_database(passwd: bytes, group: bytes, user: str) -> None:
    with contextlib.suppress(VerificationError):
        _check(resolve({"Cmd": ["x"], "User": user}, passwd, group))


@given(st.integers(0, MAX_ID), _FILE, _FILE)
def test_digits_are_that_user(uid: int, passwd: bytes | None, group: bytes | None) -> None:
    assert resolve({"Cmd": ["x"], "User": f"{uid}:{uid}"}, passwd, group).uid == uid
