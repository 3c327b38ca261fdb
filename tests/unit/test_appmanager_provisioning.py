"""Provisioning as a transaction: what is refused, in which order things happen, what is undone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from islet_cli.attestation.rem import application_measurement, chunks
from islet_cli.errors import IsletError, OperationError
from islet_cli.keys.ecc import generate
from realm_doubles import (
    CA,
    OTHER_VENDOR,
    VENDOR,
    Realm,
    image_of,
    info,
    metadata_page,
    unreachable,
    uuid_of,
)

FINGERPRINT = VENDOR.public.fingerprint


@pytest.fixture
def realm(tmp_path: Path) -> Realm:
    return Realm(tmp_path)


def refused(realm: Realm, *infos: Any, code: str, **options: Any) -> IsletError:
    """Provision, require the refusal `code`, and that nothing stays open."""
    with pytest.raises(IsletError) as caught:
        realm.provision(*infos, **options)
    assert caught.value.code == code, caught.value
    assert realm.storage.open == []
    return caught.value


def writes(realm: Realm) -> int:
    return sum(disk.writes for disk in realm.storage.disks.values())


def test_an_application_is_installed_measured_and_started(realm: Realm) -> None:
    realm.publish("one")
    (application,) = realm.provision(info("one"))
    (spec, _process), *others = realm.containers.started
    assert not others and spec.argv == ("/app",) and spec.hostname == "one"
    assert [mount for mount in realm.storage.open if mount.startswith("overlay")]
    expected = application_measurement(application.vendor_data, application.decision.image.image_hash)
    assert realm.rsi.extended == [(1, chunk) for chunk in chunks(expected)]
    assert realm.rem_marker.exists() and realm.locked == 1
    slot = realm.storage.disk(uuid_of("one/image")).slots[0]
    assert (slot / "img" / "app").read_bytes() == b"program"
    assert application.decision.fetched is not None
    assert application.decision.fetched.config == application.decision.image.config


def test_a_fresh_volume_is_told_as_fresh_once(realm: Realm) -> None:
    realm.publish("one")
    realm.provision(info("one"))
    volume = realm.root / "run" / uuid_of("one") / "volume.json"
    assert json.loads(volume.read_text()) == {"schema": 1, "fresh": True}
    realm.reboot()
    realm.provision(info("one"))
    assert json.loads(volume.read_text()) == {"schema": 1, "fresh": False}


def test_a_volume_stays_fresh_until_an_application_was_started_on_it(realm: Realm) -> None:
    realm.publish("one")
    realm.containers.refuse = True
    refused(realm, info("one"), code="launch-failed")
    realm.containers.refuse = False
    realm.reboot()
    realm.provision(info("one"))
    volume = realm.root / "run" / uuid_of("one") / "volume.json"
    assert json.loads(volume.read_text()) == {"schema": 1, "fresh": True}


def test_an_installed_image_is_not_installed_again(realm: Realm) -> None:
    realm.publish("one")
    realm.provision(info("one"))
    before = writes(realm)
    realm.reboot()
    realm.provision(info("one"))
    assert writes(realm) == before


def test_a_new_version_is_installed_and_keeps_the_data(realm: Realm) -> None:
    realm.publish("one")
    realm.provision(info("one"))
    data = realm.storage.disk(uuid_of("one/data"))
    directory, count = data.directory, data.writes
    realm.reboot()
    realm.publish("one", content=b"better")
    realm.provision(info("one"))
    assert (data.directory, data.writes) == (directory, count)
    assert (realm.storage.disk(uuid_of("one/image")).slots[-1] / "img" / "app").read_bytes() == b"better"


# -- the policy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"name": "../etc"}, "name-invalid"),
        ({"name": "One"}, "name-invalid"),
        ({"version": "a b"}, "version-invalid"),
        ({"image_registry": "http://10.0.2.100:1337"}, "registry-scheme"),
        ({"image_registry": "10.0.2.100:1337/x"}, "registry-invalid"),
        ({"image_registry": "10.0.2.100:99999"}, "registry-invalid"),
        ({"image_registry": "a\r\nHost: b"}, "registry-invalid"),
    ],
)
def test_a_selection_out_of_form_is_refused_before_anything_is_fetched(
    realm: Realm, changes: dict[str, str], code: str
) -> None:
    refused(realm, info("one", **changes), code=code)
    assert realm.source.fetched == [] and writes(realm) == 0


@pytest.mark.parametrize(
    ("member", "code"),
    [("id", "duplicate-id"), ("name", "duplicate-name"), ("image_part_uuid", "duplicate-partition")],
)
def test_repetitions_are_refused(realm: Realm, member: str, code: str) -> None:
    one = info("one")
    refused(realm, one, info("two", **{member: getattr(one, member)}), code=code)


def test_a_partition_cannot_be_image_and_data_at_once(realm: Realm) -> None:
    one = info("one")
    refused(realm, info("two", data_part_uuid=one.image_part_uuid), one, code="duplicate-partition")


def test_only_listed_registries_are_asked(tmp_path: Path) -> None:
    realm = Realm(tmp_path, policy__registries=["registry.example:443"])
    realm.publish("one")
    refused(realm, info("one"), code="registry-not-allowed")
    assert realm.source.fetched == []
    realm.provision(info("one", image_registry="https://Registry.example:443"))


def test_only_listed_vendors_are_taken(tmp_path: Path) -> None:
    realm = Realm(tmp_path, policy__vendors=[FINGERPRINT])
    realm.publish("one", vendor=OTHER_VENDOR)
    refused(realm, info("one"), code="vendor-not-allowed")
    assert writes(realm) == 0


def test_the_policys_list_decides_names_vendors_versions_and_order(tmp_path: Path) -> None:
    rules = [
        {"name": "second", "vendor": FINGERPRINT, "min_security_version": 2},
        {"name": "first", "vendor": FINGERPRINT},
    ]
    realm = Realm(tmp_path, policy__applications=rules)
    realm.publish("first")
    realm.publish("second", security_version=1)
    refused(realm, info("third"), code="name-not-allowed")
    refused(realm, info("second"), code="security-version-too-low")
    realm.publish("second", security_version=2)
    applications = realm.provision(info("first"), info("second"))
    assert [one.name for one in applications] == ["second", "first"]


def test_the_policys_list_binds_a_name_to_its_vendor(tmp_path: Path) -> None:
    realm = Realm(tmp_path, policy__applications=[{"name": "one", "vendor": OTHER_VENDOR.public.fingerprint}])
    realm.publish("one")
    refused(realm, info("one"), code="vendor-not-allowed")


# -- images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"ca": generate()}, "vendor_signature_invalid"),
        ({"label": "other"}, "name_mismatch"),
        ({"label": None}, "name_mismatch"),
    ],
)
def test_an_image_that_does_not_verify_changes_nothing(realm: Realm, changes: dict[str, Any], code: str) -> None:
    realm.publish("one", **changes)
    refused(realm, info("one"), code=code)
    assert writes(realm) == 0 and realm.rsi.extended == []


def test_an_unsigned_image_is_refused(realm: Realm) -> None:
    image, layer = image_of("one")
    realm.source.images["one"] = (type(image)(image.manifest_digest, {}, image.config, image.layers), layer)
    refused(realm, info("one"), code="annotation_missing")


def test_a_flipped_byte_in_a_layer_leaves_the_old_image(realm: Realm) -> None:
    realm.publish("one")
    realm.provision(info("one"))
    record = realm.storage.disk(uuid_of("one/image")).record
    realm.reboot()
    realm.publish("one", content=b"other", flip=True)
    with pytest.raises(IsletError):
        realm.provision(info("one"))
    assert realm.storage.disk(uuid_of("one/image")).record == record
    assert realm.rsi.extended == [] and realm.storage.open == []


def test_different_vendors_are_refused_before_any_disk_changes(realm: Realm) -> None:
    realm.publish("one")
    realm.publish("two", vendor=OTHER_VENDOR)
    refused(realm, info("one"), info("two"), code="different-vendors")
    assert writes(realm) == 0 and not realm.rem_marker.exists()


def test_another_signature_of_the_ca_over_the_same_vendor_is_the_same_vendor(realm: Realm) -> None:
    realm.publish("one")
    image, layer = image_of("two")
    # An equally valid signature (r, n-s) differs in its bytes.
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

    r, s = decode_dss_signature(CA.sign(VENDOR.public.spki))
    other = encode_dss_signature(r, order - s).hex()
    annotations = dict(image.annotations) | {"com.samsung.islet.image.vendorpub.signature": other}
    realm.source.images["two"] = (type(image)(image.manifest_digest, annotations, image.config, image.layers), layer)
    assert len(realm.provision(info("one"), info("two"))) == 2


def test_vendors_may_differ_where_the_configuration_says_so(tmp_path: Path) -> None:
    realm = Realm(tmp_path, ensure_same_app_vendor=False)
    realm.publish("one")
    realm.publish("two", vendor=OTHER_VENDOR)
    assert len(realm.provision(info("one"), info("two"))) == 2


def test_rollback_is_refused_even_when_only_the_data_volume_remembers(realm: Realm) -> None:
    realm.publish("one", security_version=3)
    realm.provision(info("one"))
    realm.reboot()
    realm.publish("one", security_version=2)
    refused(realm, info("one"), code="rollback_refused")
    # The host restores a data volume that has seen a later version than its key's.
    data = realm.storage.disk(uuid_of("one/data"))
    assert data.directory is not None
    (data.directory / "rollback.json").write_text('{"schema":1,"highest_security_version":4,"fresh":false}')
    realm.reboot()
    realm.publish("one", security_version=3)
    refused(realm, info("one"), code="rollback_refused")


def test_damaged_rollback_state_fails_closed(realm: Realm) -> None:
    realm.publish("one")
    realm.provision(info("one"))
    data = realm.storage.disk(uuid_of("one/data"))
    assert data.directory is not None
    (data.directory / "rollback.json").write_text("{}")
    realm.reboot()
    refused(realm, info("one"), code="volume-state")


# -- the registry is away -----------------------------------------------------------------------------------


def test_an_installed_image_starts_without_the_registry(realm: Realm) -> None:
    realm.publish("one")
    realm.provision(info("one"))
    measured = list(realm.rsi.extended)
    realm.reboot()
    realm.source.images["one"] = unreachable()
    (application,) = realm.provision(info("one"))
    assert application.decision.offline and realm.rsi.extended == measured


def test_without_the_registry_nothing_new_starts(realm: Realm) -> None:
    realm.source.images["one"] = unreachable()
    refused(realm, info("one"), code="registry_unreachable")


def test_the_policy_can_forbid_offline_starts(tmp_path: Path) -> None:
    realm = Realm(tmp_path, policy__offline=False)
    realm.publish("one")
    realm.provision(info("one"))
    realm.reboot()
    realm.source.images["one"] = unreachable()
    refused(realm, info("one"), code="registry_unreachable")


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_of_the_registry_is_not_taken_for_absence(realm: Realm, status: int) -> None:
    realm.publish("one")
    realm.provision(info("one"))
    realm.reboot()
    realm.source.images["one"] = OperationError("refused", code="http_status", status=status)
    refused(realm, info("one"), code="http_status")


# -- keys and data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page", [metadata_page(signer=b"\7" * 96), metadata_page(realm_id="local.islet.other"), metadata_page(svn=0), b""]
)
def test_another_metadata_block_opens_nothing_and_writes_nothing(realm: Realm, page: bytes) -> None:
    realm.publish("one")
    realm.provision(info("one"))
    before = writes(realm)
    realm.reboot()
    realm.rsi.metadata = page
    error = refused(realm, info("one"), code="data-at-risk")
    assert "metadata block" in error.message
    assert writes(realm) == before
    # Only keys with the RIM flag were asked for.
    assert all(flags & 2 for flags, _svn in realm.rsi.asked[1:])


def test_a_rebuilt_image_with_the_same_signer_opens_the_data(realm: Realm) -> None:
    realm.publish("one")
    realm.provision(info("one"))
    realm.reboot()
    realm.rsi.rim, realm.rsi.metadata = b"another rim", metadata_page(svn=2)
    realm.provision(info("one"))


def test_without_metadata_a_rebuilt_image_gets_data_at_risk(realm: Realm) -> None:
    realm.rsi.metadata = b""
    realm.publish("one")
    realm.provision(info("one"))
    before = writes(realm)
    realm.reboot()
    realm.rsi.rim = b"another rim"
    refused(realm, info("one"), code="data-at-risk")
    assert writes(realm) == before


def test_data_is_formatted_when_that_was_allowed_and_only_then(realm: Realm) -> None:
    realm.publish("one")
    realm.provision(info("one"))
    realm.reboot()
    realm.rsi.metadata = metadata_page(signer=b"\7" * 96)
    other = frozenset([uuid_of("two")])
    refused(realm, info("one"), code="data-at-risk", reformat=other)
    (application,) = realm.provision(info("one"), reformat=frozenset([uuid_of("one")]))
    assert application.supervisor.status().name == "ApplicationIsRunning"


def test_a_risen_security_version_is_data_at_risk_with_its_reason(realm: Realm) -> None:
    realm.publish("one", security_version=1)
    realm.provision(info("one"))
    before = writes(realm)
    realm.reboot()
    realm.publish("one", security_version=2)
    error = refused(realm, info("one"), code="data-at-risk")
    assert "re-encryption" in error.message and writes(realm) == before


# -- failures on the way ------------------------------------------------------------------------------------


def test_a_failed_mount_undoes_everything_and_a_retry_works(realm: Realm) -> None:
    realm.publish("one")
    realm.publish("two")
    realm.storage.fail.add("overlay")
    refused(realm, info("one"), info("two"), code="storage")
    assert realm.rsi.extended == [] and not realm.rem_marker.exists() and realm.locked == 0
    realm.storage.fail.clear()
    assert len(realm.provision(info("one"), info("two"))) == 2


def test_after_a_measurement_a_failure_needs_a_reboot(realm: Realm) -> None:
    realm.publish("one")
    realm.containers.refuse = True
    error = refused(realm, info("one"), code="launch-failed")
    assert "reboot" in error.message and realm.rem_marker.exists()
    realm.containers.refuse = False
    refused(realm, info("one"), code="reboot-needed")
    realm.reboot()
    realm.provision(info("one"))


def test_the_marker_stands_before_the_first_extension(realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    realm.publish("one")
    seen = []
    monkeypatch.setattr(realm.rsi, "measurement_extend", lambda *_: seen.append(realm.rem_marker.exists()))
    realm.provision(info("one"))
    assert seen and all(seen)


def test_cancelling_ends_a_download_and_keeps_the_old_image(realm: Realm) -> None:
    realm.publish("one")
    realm.source.before_layers = realm.provisioner.cancel
    refused(realm, info("one"), code="cancelled")
    assert writes(realm) == 0


def test_progress_names_the_application_and_the_phase(realm: Realm) -> None:
    realm.publish("one")
    realm.provision(info("one"))
    assert {(name, phase) for name, phase, _done, _total in realm.progress} == {("one", "fetch"), ("one", "unpack")}


def test_an_empty_provisioning_touches_nothing(realm: Realm) -> None:
    assert realm.provision() == []
    assert realm.rsi.asked == [] and not realm.rem_marker.exists()


def test_closing_stops_and_undoes_in_reverse(realm: Realm) -> None:
    realm.publish("one")
    (application,) = realm.provision(info("one"))
    application.close(realm.lines.append)
    assert realm.storage.open == [] and realm.lines == []
    assert realm.containers.started[0][1].signals == [15]
