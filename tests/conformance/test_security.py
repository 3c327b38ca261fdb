"""Vectors of our own security formats: v2 keys and host challenges."""

from __future__ import annotations

from typing import Any

import pytest
import vectors

from islet_cli.appmanager import keys
from islet_cli.attestation import challenge

CASES = vectors.load("ISLET_VECTORS_SECURITY")["cases"]
unhex = bytes.fromhex


def v2_keys(inputs: dict[str, Any], expect: dict[str, Any]) -> None:
    config = unhex(inputs["image_config"]) if inputs["rim_flag"] else None
    derived = keys.v2_keys(
        unhex(inputs["ikm"]), inputs["name"], unhex(inputs["vendor_spki"]), inputs["security_version"], config
    )
    assert [key.hex() for key in derived] == [expect["image_key"], expect["data_key"], expect["record_key"]]


def host_challenge(inputs: dict[str, Any], expect: dict[str, Any]) -> None:
    assert challenge.host_challenge(unhex(inputs["challenge"])).hex() == expect["realm_challenge"]
    assert expect["rem3_marker"] == challenge.HOST_TOKEN_MARKER.hex()


CHECKS = {"v2_keys": v2_keys, "host_challenge": host_challenge}


@pytest.mark.parametrize("case", CASES, ids=[f"{case['kind']}-{index}" for index, case in enumerate(CASES)])
def test_vector(case: dict[str, Any]) -> None:
    CHECKS[case["kind"]](case["input"], case["expect"])
