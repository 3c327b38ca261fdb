"""The life of realms: states, refusals, failures, escalation, and the upstream defects that must not come back."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from warden_harness import Harness, random_uuid, upstream_config

from islet_cli.errors import IsletError, UnavailableError
from islet_cli.warden.client import WardenClient
from islet_cli.warden.errors import WardenError
from islet_cli.warden.network import Publish


@pytest.fixture
def warden(tmp_path: Path) -> Iterator[Harness]:
    with Harness(tmp_path) as harness:
        yield harness
        for vm in harness.runner.vms:
            if harness.warden and all(realm.state == "Halted" for realm in harness.warden._realms.values()):
                assert vm.exit_status is not None
    assert harness.platform.open == 0, "a realm descriptor was left behind"
    assert all(vm.exit_status is not None for vm in harness.runner.vms), "a VM was left behind"


@pytest.fixture
def client(warden: Harness) -> Iterator[WardenClient]:
    with warden.client() as connected:
        yield connected


@pytest.fixture
def realm(warden: Harness, client: WardenClient) -> str:
    return client.create_realm_launch("r1", warden.launch())


def add(client: WardenClient, realm: str, name: str = "counter", **changes: Any) -> str:
    options = {"registry": "127.0.0.1:1337", "image_mb": 2, "data_mb": 1} | changes
    return client.create_application(realm, name, **options)


def refused(code: str, call: Any, *arguments: Any, **keywords: Any) -> IsletError:
    with pytest.raises(IsletError) as raised:
        call(*arguments, **keywords)
    assert raised.value.code == code, raised.value.message
    return raised.value


def state(client: WardenClient, realm: str) -> str:
    return str(client.inspect(realm)["state"])


def until(condition: Any, timeout_s: float = 3.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not reached"
        time.sleep(0.02)


# ---------------------------------------------------------------------------------------- good order


def test_create_start_stop_destroy(warden: Harness, client: WardenClient, realm: str) -> None:
    app = add(client, realm)
    client.start("r1")
    shown = client.inspect("r1")
    assert shown["state"] == "Running"
    assert shown["applications"] == [app]
    assert shown["network"] == [
        {"ip": "10.0.2.15", "if_name": "eth0"},
        {"ip": "10.9.9.9", "if_name": "eth1"},
    ]
    (info,) = warden.runner.manager.provisioned
    assert (info["id"], info["name"], info["version"]) == (app, "counter", "latest")
    assert info["image_registry"] == "10.0.2.100:1337"
    client.stop("r1")
    assert client.inspect("r1")["network"] == []
    client.destroy("r1")
    assert client.list() == []
    assert [path.name for path in warden.options.workdir.iterdir() if path.name != "warden.lock"] == []


def test_applications_are_provisioned_in_creation_order(warden: Harness, client: WardenClient, realm: str) -> None:
    apps = [add(client, realm, f"app{number}") for number in range(6)]
    client.start(realm)
    assert [info["id"] for info in warden.runner.manager.provisioned] == apps
    assert client.inspect(realm)["applications"] == apps


def test_creation_order_survives_a_restart_of_the_daemon(tmp_path: Path) -> None:
    with Harness(tmp_path) as first, first.client() as client:
        realm = client.create_realm_launch("r", first.launch())
        apps = [add(client, realm, f"app{number}") for number in range(6)]
    with Harness(tmp_path) as second, second.client() as client:
        assert client.inspect("r")["applications"] == apps
        client.start("r")
        assert [info["id"] for info in second.runner.manager.provisioned] == apps


def test_reboot_is_a_new_process_and_a_new_descriptor(warden: Harness, client: WardenClient, realm: str) -> None:
    add(client, realm)
    client.start(realm)
    client.reboot(realm)
    assert state(client, realm) == "Running"
    assert len(warden.runner.vms) == 2
    assert warden.platform.total == 2
    assert warden.platform.open == 1
    assert warden.runner.manager.names().count("Reboot") == 1


def test_two_realms_run_at_once(warden: Harness, client: WardenClient, realm: str) -> None:
    other = client.create_realm_launch("r2", warden.launch())
    client.start(realm)
    client.start(other)
    assert {item["state"] for item in client.list()} == {"Running"}


def test_measured_files_are_copied_and_digested(warden: Harness, client: WardenClient, realm: str) -> None:
    launch = client.describe_launch(realm)["launch"]
    (warden.directory / "kernel").write_bytes(b"changed afterwards")
    copy = Path(launch["kernel"])
    assert copy.is_relative_to(warden.options.workdir)
    assert copy.read_bytes() == b"kernel" * 100
    assert len(launch["kernel_sha256"]) == 64


def test_wrong_digest_of_a_launch_leaves_nothing(warden: Harness, client: WardenClient) -> None:
    refused("bad-config", client.create_realm_launch, "x", warden.launch(kernel_sha256="00" * 32))
    refused("bad-config", client.create_realm_launch, "x", warden.launch(kernel="/nowhere"))
    assert [path.name for path in warden.options.workdir.iterdir() if path.name != "warden.lock"] == []


def test_a_launch_with_another_number_of_disks_is_not_supported(warden: Harness, client: WardenClient) -> None:
    refused("not-supported", client.create_realm_launch, "x", warden.launch(disks=2))


def test_update_keeps_disk_and_applications(warden: Harness, client: WardenClient, realm: str) -> None:
    app = add(client, realm)
    before = warden.options.workdir.joinpath(realm, "disk.raw").read_bytes()[:20000]
    (warden.directory / "kernel2").write_bytes(b"new kernel")
    client.update_realm("r1", warden.launch(kernel=str(warden.directory / "kernel2")))
    assert Path(client.describe_launch(realm)["launch"]["kernel"]).read_bytes() == b"new kernel"
    assert warden.options.workdir.joinpath(realm, "disk.raw").read_bytes()[:20000] == before
    assert client.inspect(realm)["applications"] == [app]
    kernels = [path for path in warden.options.workdir.joinpath(realm).iterdir() if path.name.startswith("kernel-")]
    assert len(kernels) == 1
    client.start(realm)
    refused("bad-state", client.update_realm, realm, warden.launch())


def test_a_port_can_be_published_and_picked(warden: Harness, client: WardenClient) -> None:
    client.create_realm_launch("p", warden.launch(), publish=[Publish("127.0.0.1", 0, 80)])
    client.start("p")
    (port,) = client.describe_realm("p")["publish"]
    assert port["host_port"] > 0
    assert warden.runner.manager.launches[-1].network.publish[0].host_port == port["host_port"]
    client.reboot("p")
    assert client.describe_realm("p")["publish"] == [port], "users keep the address across a reboot"


def test_a_busy_port_is_named_with_its_mend(warden: Harness, client: WardenClient) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        client.create_realm_launch("p", warden.launch(), publish=[Publish("127.0.0.1", port, 80)])
        error = refused("network", client.start, "p")
    assert isinstance(error, UnavailableError)
    assert error.exit_code == 3
    assert str(port) in error.message
    assert "publish" in (error.hint or "")
    assert state(client, "p") == "Halted"
    client.start("p")


# ------------------------------------------------------------------------------------------ refusals


def test_refusals_by_state(client: WardenClient, realm: str) -> None:
    app = add(client, realm)
    for call in (client.stop, client.reboot):
        refused("bad-state", call, realm)
    for call in (client.start_application, client.stop_application, client.kill_application):
        refused("bad-state", call, realm, app)
    client.start(realm)
    refused("bad-state", client.start, realm)
    refused("bad-state", client.destroy, realm)
    refused("bad-state", add, client, realm, "second")
    refused("bad-state", client.remove_application, realm, app)


def test_unknown_names(client: WardenClient, realm: str) -> None:
    refused("no-such-realm", client.start, "nobody")
    refused("no-such-realm", client.start, random_uuid())
    refused("no-such-application", client.remove_application, realm, random_uuid())
    refused("no-such-application", client.remove_application, realm, "nobody")


def test_known_id_and_name_are_refused(warden: Harness, client: WardenClient, realm: str) -> None:
    refused("realm-exists", client.create_realm_launch, "r1", warden.launch())
    refused("realm-exists", client.create_realm_launch, "r2", warden.launch(), realm_id=realm)


@pytest.mark.parametrize("name", ["", "Upper", "a b", "../x", "38eee877-4a60-49d6-9d73-2b98e039db46", "a\0"])
def test_realm_names(warden: Harness, client: WardenClient, name: str) -> None:
    refused("bad-config", client.create_realm_launch, name, warden.launch())


def test_resources_belong_to_one_realm(client: WardenClient) -> None:
    client.create_realm(upstream_config())
    for changes in (
        {"tap_device": "tap1", "mac_address": "52:55:00:11:55:02"},
        {"vsock_cid": 5, "mac_address": "52:55:00:11:55:02"},
        {"vsock_cid": 5, "tap_device": "tap1"},
    ):
        refused("resource-taken", client.create_realm, upstream_config(**changes))


@pytest.mark.parametrize(
    "changes",
    [{"vsock_cid": 2}, {"vsock_cid": 0xFFFFFFFF}, {"tap_device": "x" * 16}, {"mac_address": "1:2:3"}],
)
def test_upstream_configurations_are_validated(client: WardenClient, changes: dict[str, Any]) -> None:
    refused("bad-config", client.create_realm, upstream_config(**changes))


@pytest.mark.parametrize("size", [0, 102401, 4294967295])
def test_impossible_sizes_are_refused_at_once(client: WardenClient, realm: str, size: int) -> None:
    refused("bad-config", add, client, realm, image_mb=size)
    app = add(client, realm)
    refused("bad-config", client.update_application, realm, app, data_mb=size)
    assert client.describe_application(realm, app)["data_storage_size_mb"] == 1


def test_challenge_of_another_length_is_refused_by_the_warden(
    warden: Harness, client: WardenClient, realm: str
) -> None:
    client._send({"FetchToken": {"uuid": realm, "challenge": [1, 2, 3]}})
    refused("bad-config", client._receive)
    assert warden.runner.vms == []


# ------------------------------------------------------------------------------------------ failures


def test_vm_that_ends_during_start_is_reaped_and_the_next_start_works(
    warden: Harness, client: WardenClient, realm: str
) -> None:
    warden.runner.manager.exit_at_launch = 1
    error = refused("launch-failed", client.start, realm)
    assert "status 1" in error.message
    assert "Kernel panic" in error.message
    assert state(client, realm) == "Halted"
    assert "Kernel panic" in client.describe_realm(realm)["last_error"]
    warden.runner.manager.exit_at_launch = None
    client.start(realm)
    assert client.describe_realm(realm)["last_error"] is None


def test_vm_exit_during_provisioning_is_noticed_at_once(warden: Harness, client: WardenClient, realm: str) -> None:
    warden.runner.manager.override["ProvisionInfo"] = lambda manager, content: "exit"
    begun = time.monotonic()
    refused("launch-failed", client.start, realm)
    assert time.monotonic() - begun < 1.5
    assert state(client, realm) == "Halted"


def test_realm_that_does_not_connect_is_killed(warden: Harness, client: WardenClient, realm: str) -> None:
    warden.runner.manager.connects = False
    refused("realm-timeout", client.start, realm)
    assert warden.runner.vms[0].exit_status is not None
    warden.runner.manager.connects = True
    client.start(realm)


def test_provisioning_error_ends_in_halted_with_the_managers_text(
    warden: Harness, client: WardenClient, realm: str
) -> None:
    warden.runner.manager.override["ProvisionInfo"] = lambda manager, content: {
        "Error": {"ProvisioningError": "no such image"}
    }
    error = refused("realm-error", client.start, realm)
    assert "no such image" in error.message
    assert state(client, realm) == "Halted"


def test_data_at_risk_has_a_code_and_a_mend(warden: Harness, client: WardenClient, realm: str) -> None:
    app = add(client, realm)
    warden.runner.manager.override["ProvisionInfo"] = lambda manager, content: {
        "Error": {"ProvisioningError": "data-at-risk: the volume does not open"}
    }
    error = refused("data-at-risk", client.start, realm)
    assert "islet app reformat" in (error.hint or "")
    del warden.runner.manager.override["ProvisionInfo"]
    client.confirm_reformat(realm, app)
    client.start(realm)
    assert warden.runner.manager.requests[-2:] == [
        ("AllowReformat", app),
        ("ProvisionInfo", warden.runner.manager.provisioned),
    ]
    client.reboot(realm)
    assert warden.runner.manager.names().count("AllowReformat") == 1, "the permission is good for one start"


def test_launch_failure_releases_the_descriptor(warden: Harness, client: WardenClient, realm: str) -> None:
    warden.runner.fail = UnavailableError("no qemu", code="unavailable", hint="run: apt-get install qemu-system-x86")
    error = refused("unavailable", client.start, realm)
    assert error.exit_code == 3
    assert error.hint == "run: apt-get install qemu-system-x86"
    assert state(client, realm) == "Halted"


def test_refused_activation_boots_nothing(warden: Harness, client: WardenClient, realm: str) -> None:
    warden.platform.refuse = WardenError("the metadata block is for another RIM", code="launch-failed")
    error = refused("launch-failed", client.start, realm)
    assert "another RIM" in error.message
    assert warden.runner.vms == []


def test_damaged_disk_is_never_overwritten(warden: Harness, client: WardenClient, realm: str) -> None:
    add(client, realm)
    disk = warden.options.workdir / realm / "disk.raw"
    disk.write_bytes(b"\xff" * 5_000_000)
    refused("disk", client.start, realm)
    assert disk.read_bytes() == b"\xff" * 5_000_000
    assert state(client, realm) == "Halted"


def test_full_disk_leaves_nothing_behind(
    warden: Harness, client: WardenClient, realm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from islet_cli.volumes import disk

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(path.name for path in (warden.options.workdir / realm).iterdir())
    monkeypatch.setattr(disk, "_write", full)
    error = refused("disk", add, client, realm)
    assert "No space left" in error.message
    assert error.hint
    assert sorted(path.name for path in (warden.options.workdir / realm).iterdir()) == before


def test_vm_crash_while_running_is_noticed(warden: Harness, client: WardenClient, realm: str) -> None:
    app = add(client, realm)
    client.start(realm)
    warden.call(lambda: warden.runner.vms[0].exit(-9))
    until(lambda: state(client, realm) == "Halted")
    described = client.describe_realm(realm)
    assert "-9" in described["last_error"]
    assert described["applications"][0]["status"] == "Unknown"
    assert len(client.list()) == 1
    refused("bad-state", client.start_application, realm, app)
    client.start(realm)
    assert state(client, realm) == "Running"


def test_stop_of_a_silent_realm_escalates(warden: Harness, client: WardenClient, realm: str) -> None:
    client.start(realm)
    warden.runner.manager.ignores_shutdown = True
    client.stop(realm)
    assert state(client, realm) == "Halted"
    assert warden.runner.vms[0].exit_status == -15


def test_stop_cancels_a_start(warden: Harness, client: WardenClient, realm: str) -> None:
    warden.runner.manager.override["ProvisionInfo"] = lambda manager, content: None
    outcome: list[IsletError] = []

    def start() -> None:
        with warden.client() as second:
            outcome.append(refused("bad-state", second.start, realm))

    thread = threading.Thread(target=start)
    thread.start()
    until(lambda: "ProvisionInfo" in warden.runner.manager.names())
    assert state(client, realm) == "Provisioning"
    client.stop(realm)
    thread.join(5)
    assert outcome
    assert "cancelled" in outcome[0].message
    assert state(client, realm) == "Halted"


def test_a_slow_realm_blocks_nobody_else(warden: Harness, client: WardenClient, realm: str) -> None:
    other = client.create_realm_launch("other", warden.launch())
    warden.runner.manager.override["ProvisionInfo"] = lambda manager, content: None
    thread = threading.Thread(target=lambda: _start_and_fail(warden, realm))
    thread.start()
    until(lambda: "ProvisionInfo" in warden.runner.manager.names())
    del warden.runner.manager.override["ProvisionInfo"]
    begun = time.monotonic()
    assert {item["state"] for item in client.list()} == {"Provisioning", "Halted"}
    refused("bad-state", client.start, realm)
    client.start(other)
    assert time.monotonic() - begun < 1.0
    thread.join(5)


def _start_and_fail(warden: Harness, realm: str) -> None:
    with warden.client() as client:
        refused("realm-timeout", client.start, realm)


def test_second_mutation_is_busy(warden: Harness, client: WardenClient, realm: str) -> None:
    client.start(realm)
    warden.runner.manager.ignores_shutdown = True
    thread = threading.Thread(target=lambda: _stop(warden, realm))
    thread.start()
    until(lambda: "Shutdown" in warden.runner.manager.names())
    refused("busy", client.reboot, realm)
    thread.join(5)


def _stop(warden: Harness, realm: str) -> None:
    with warden.client() as client:
        client.stop(realm)


def test_silent_realm_leaves_network_empty_and_list_quick(warden: Harness, client: WardenClient, realm: str) -> None:
    client.start(realm)
    warden.runner.manager.override["GetIfAddrs"] = lambda manager, content: None
    begun = time.monotonic()
    assert client.inspect(realm)["network"] == []
    assert time.monotonic() - begun < 1.0


def test_late_answers_are_not_taken_for_others(warden: Harness, client: WardenClient, realm: str) -> None:
    app = add(client, realm)
    client.start(realm)

    async def late(manager: Any, content: Any) -> Any:
        await asyncio.sleep(0.7)
        return {"IfAddrs": {}}

    warden.runner.manager.override["GetIfAddrs"] = lambda manager, content: late(manager, content)
    assert client.inspect(realm)["network"] == []
    del warden.runner.manager.override["GetIfAddrs"]
    time.sleep(0.6)
    assert client.inspect_application(realm, app)["status"] == "Running"
    assert len(client.inspect(realm)["network"]) == 2


def test_manager_that_begins_anew_is_provisioned_again(warden: Harness, client: WardenClient, realm: str) -> None:
    from islet_cli.warden.messages import REALM_HELLO

    add(client, realm)
    client.start(realm)
    before = warden.runner.manager.names().count("ProvisionInfo")
    warden.call(lambda: warden.runner.vms[0].writer.write(b"\x00\x00\x10\x00half a frame" + REALM_HELLO))
    until(lambda: warden.runner.manager.names().count("ProvisionInfo") == before + 1)
    until(lambda: state(client, realm) == "Running")
    assert len(warden.runner.vms) == 1


# --------------------------------------------------------------------------------------------- token


def test_token_of_a_running_realm(client: WardenClient, realm: str) -> None:
    client.start(realm)
    assert client.token(realm, bytes(64)) == b"\1\2\3"


def test_token_of_a_halted_realm_by_short_boot(warden: Harness, client: WardenClient, realm: str) -> None:
    add(client, realm)
    assert client.token(realm, bytes(64)) == b"\1\2\3"
    assert state(client, realm) == "Halted"
    assert "ProvisionInfo" not in warden.runner.manager.names()
    assert warden.runner.vms[0].exit_status == 0
    assert len(warden.runner.manager.launches[0].disks) == 1


def test_token_without_connection_leaves_no_vm(warden: Harness, client: WardenClient, realm: str) -> None:
    warden.runner.manager.connects = False
    refused("realm-timeout", client.token, realm, bytes(64))
    assert warden.runner.vms[0].exit_status is not None
    warden.runner.manager.connects = True
    client.start(realm)


# -------------------------------------------------------------------------------------- applications


def test_application_status_remembers_the_exit(warden: Harness, client: WardenClient, realm: str) -> None:
    app = add(client, realm)
    assert client.inspect_application(realm, app)["status"] == "Unknown"
    client.start(realm)
    assert client.inspect_application(realm, "counter")["status"] == "Running"
    warden.runner.manager.override["CheckStatus"] = lambda manager, content: {"ApplicationExited": 256}
    assert client.inspect_application(realm, app)["exit_status"] == 256
    warden.runner.manager.override["CheckStatus"] = lambda manager, content: {"ApplicationNotStarted": []}
    shown = client.inspect_application(realm, app)
    assert (shown["status"], shown["exit_status"]) == ("Exited", 256)
    client.start_application(realm, app)
    assert client.inspect_application(realm, app)["status"] == "NotStarted"


@pytest.mark.parametrize("delay_s", [0.0, 0.8])
def test_refused_or_late_stop_is_followed_by_kill(
    warden: Harness, client: WardenClient, realm: str, delay_s: float
) -> None:
    app = add(client, realm)
    client.start(realm)

    async def stuck(manager: Any, content: Any) -> Any:
        await asyncio.sleep(delay_s)
        return {"Error": {"ApplicationStopFailed": "stuck"}}

    warden.runner.manager.override["StopApp"] = stuck
    client.stop_application(realm, app)
    assert warden.runner.manager.names()[-2:] == ["StopApp", "KillApp"]


def test_update_while_running_needs_a_reboot(warden: Harness, client: WardenClient, realm: str) -> None:
    app = add(client, realm)
    client.start(realm)
    client.update_application(realm, app, version="v2")
    assert state(client, realm) == "NeedReboot"
    client.reboot(realm)
    assert state(client, realm) == "Running"
    assert warden.runner.manager.provisioned[0]["version"] == "v2"


def test_data_is_not_lost_by_an_update(warden: Harness, client: WardenClient, realm: str) -> None:
    app = add(client, realm, data_mb=3)
    client.update_application(realm, app, name="renamed", data_mb=2)
    client.start(realm)
    client.stop(realm)
    refused("data-at-risk", client.update_application, realm, app, name="other")
    refused("data-at-risk", client.update_application, realm, app, data_mb=1)
    client.update_application(realm, app, data_mb=5, image_mb=1)
    client.start(realm)
    client.stop(realm)
    client.confirm_reformat(realm, app)
    client.update_application(realm, app, data_mb=1)
    client.start(realm)


def test_growing_keeps_content_and_guid(warden: Harness, client: WardenClient, realm: str) -> None:
    from islet_cli.volumes.disk import SharedDisk

    app = add(client, realm, data_mb=1)
    client.start(realm)
    client.stop(realm)
    disk = SharedDisk(warden.options.workdir / realm / "disk.raw")
    (before,) = disk.applications().values()
    with disk.path.open("r+b") as file:
        file.seek(before.data.start_bytes)
        file.write(b"precious")
    client.update_application(realm, app, data_mb=4)
    client.start(realm)
    (after,) = disk.applications().values()
    assert after.data.guid == before.data.guid
    with disk.path.open("rb") as file:
        file.seek(after.data.start_bytes)
        assert file.read(8) == b"precious"


def test_removed_application_is_gone_from_disk_and_state(warden: Harness, client: WardenClient, realm: str) -> None:
    from islet_cli.volumes.disk import SharedDisk

    app = add(client, realm)
    keep = add(client, realm, "keep")
    client.remove_application(realm, "counter")
    assert client.inspect(realm)["applications"] == [keep]
    assert len(SharedDisk(warden.options.workdir / realm / "disk.raw").applications()) == 1
    assert not (warden.options.workdir / realm / app).exists()


def test_per_application_disks(warden: Harness, client: WardenClient) -> None:
    realm = client.create_realm(upstream_config())
    apps = [add(client, realm, f"app{number}") for number in range(2)]
    client.start(realm)
    request = warden.runner.manager.launches[0]
    assert request.plan.disks == 2
    assert [disk.serial for disk in request.disks] == [app[:20] for app in apps]
    assert (warden.options.workdir / realm / apps[0] / "disk.raw").stat().st_size == (3 * 2048 + 68) * 512
    client.stop(realm)
    client.update_application(realm, apps[0], data_mb=2)
    client.start(realm)


def test_logs_are_read_and_followed_until_the_realm_halts(warden: Harness, client: WardenClient, realm: str) -> None:
    app = add(client, realm)
    client.start(realm)
    warden.runner.manager.log = b"line 1\n" * 20000
    assert b"".join(client.logs(realm, app)) == warden.runner.manager.log
    seen: list[bytes] = []

    def follow() -> None:
        with warden.client() as second:
            seen.extend(second.logs(realm, app, follow=True))

    thread = threading.Thread(target=follow)
    thread.start()
    time.sleep(0.4)
    warden.runner.manager.log += b"more\n"
    until(lambda: b"".join(seen).endswith(b"more\n"))
    client.stop(realm)
    thread.join(5)
    assert not thread.is_alive()
    on_disk = [path for path in warden.options.workdir.rglob("*") if path.is_file() and path.suffix == ".log"]
    assert all(b"line 1" not in path.read_bytes() for path in on_disk)


def test_logs_of_an_upstream_manager_are_not_supported(warden: Harness, client: WardenClient, realm: str) -> None:
    app = add(client, realm)
    client.start(realm)
    warden.runner.manager.override["ReadLog"] = lambda manager, content: {"Error": {"InvalidRequest": "unknown"}}
    refused("not-supported", lambda: list(client.logs(realm, app)))


def test_a_follower_that_leaves_is_forgotten(warden: Harness, client: WardenClient, realm: str) -> None:
    app = add(client, realm)
    client.start(realm)
    with warden.client() as second:
        second._send({"ApplicationLogs": {"realm_uuid": realm, "application_uuid": app, "follow": True}})
        until(lambda: "ReadLog" in warden.runner.manager.names())
    until(lambda: len(warden.clients._clients) == 1)


def test_console_is_cleaned_and_progress_is_seen(warden: Harness, client: WardenClient, realm: str) -> None:
    seen: list[tuple[str, str, int, int]] = []

    async def slow(manager: Any, content: Any) -> Any:
        warden.runner.vms[0].console.feed(b"\x1b[2Jhello\x1b[0m\r\nislet: counter fetch 10/40\r\n")
        await asyncio.sleep(0.9)
        return {"Success": []}

    add(client, realm)
    warden.runner.manager.override["ProvisionInfo"] = lambda manager, content: slow(manager, content)
    client.start(realm, lambda *progress: seen.append(progress))
    assert ("counter", "fetch", 10, 40) in seen
    assert b"".join(client.console(realm)) == b"hello\nislet: counter fetch 10/40\n"
    log = warden.options.workdir / realm / "console.log"
    assert log.stat().st_mode & 0o777 == 0o600
    client.stop(realm)
    assert b"".join(client.console(realm)) == b"hello\nislet: counter fetch 10/40\n"


def test_state_file_says_what_runs(warden: Harness, client: WardenClient, realm: str) -> None:
    client.start(realm)
    state = json.loads((warden.options.workdir / realm / "state.json").read_text())
    assert state["schema"] == 1
    assert state["desired"] == "Running"
    assert state["rim"] == "ab" * 32


def test_a_vm_that_shows_no_life_under_kvm_is_tried_again_under_emulation(
    warden: Harness, client: WardenClient, realm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from warden_harness import FakeVm

    monkeypatch.setattr(FakeVm, "accel", "kvm")

    def fall_back() -> bool:
        monkeypatch.setattr(FakeVm, "accel", "tcg")
        warden.runner.manager.connects = True
        return len(warden.runner.vms) == 1

    monkeypatch.setattr(warden.runner, "fall_back", fall_back)
    warden.runner.manager.connects = False
    client.start(realm)
    assert [vm.exit_status is None for vm in warden.runner.vms] == [False, True]
    assert warden.platform.total == 2
    assert client.describe_realm(realm)["accel"] == "tcg"
