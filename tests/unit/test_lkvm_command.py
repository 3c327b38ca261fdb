"""One manifest gives RIM, lkvm arguments and QEMU arguments; and the process that is started gets them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import uuid
from pathlib import Path

import pytest

from islet_cli.cli.main import run
from islet_cli.cli.realm_life import _command
from islet_cli.launch.manifest import Manifest, load_manifest
from islet_cli.launch.plan import lkvm_arguments, lkvm_command, plan_of
from islet_cli.rim.measure import measure_arguments, measure_plan
from islet_cli.rim.request import of_manifest
from islet_cli.rim.stability import warnings_of
from islet_cli.warden.platform_session import Activation
from islet_cli.warden.qemu_arguments import MACHINES, arguments
from islet_cli.warden.runner import Disk, LaunchRequest
from rim_files import MANIFEST, write

RECORDER = '#!/bin/sh\nprintf "%s\\n" "$@" > "$(dirname "$0")/recorded"\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write(tmp_path)


def manifest_of(text: str) -> Manifest:
    Path("realm.toml").write_text(text)
    return load_manifest("realm.toml")


@pytest.mark.parametrize("metadata", [None, "metadata.bin"])
@pytest.mark.parametrize("personalization", ["", "tenant 7"])
def test_the_process_gets_exactly_what_is_measured(here: Path, metadata: str | None, personalization: str) -> None:
    """A stand-in for lkvm records its arguments: they are the printed list, and have the manifest's RIM."""
    (here / "metadata.bin").write_bytes(bytes(432))
    (here / "lkvm").write_text(RECORDER)
    (here / "lkvm").chmod(0o755)
    manifest = manifest_of(
        MANIFEST + f'[launch]\ncmdline = "quiet  x=\\"y z\\""\npersonalization = "{personalization}"\n'
    )
    plan = plan_of(manifest)
    disks, nics = ["/dev/null"], ["tapif=tap0,guest_mac=02:00:00:00:00:01"]
    started = lkvm_command(plan, program=str(here / "lkvm"), disks=disks, nics=nics, vsock_cid=7, metadata=metadata)
    subprocess.run(started, check=True)
    recorded = (here / "recorded").read_text().splitlines()
    assert recorded == started[1:] and recorded[0] == "run"
    assert ("--metadata" in recorded) == (metadata is not None)
    assert measure_arguments(recorded[1:]).rim == measure_plan(plan).rim
    described = {"launch": plan.to_json(), "disks": disks, "metadata": metadata}
    printed = _command(described, upstream=False)
    # What differs is what is not measured: addresses of devices.
    host = {"tapif=tap0,guest_mac=02:00:00:00:00:01": "mode=tap", "7": "3"}
    assert printed == ["lkvm", *(host.get(word, word) for word in recorded)]
    assert measure_arguments(printed[2:]).rim == measure_plan(plan).rim


def test_the_printed_command_measures_as_the_manifest(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = lkvm_arguments(plan_of(manifest_of(MANIFEST)))
    assert run(["rim", "compute", "--json", "--realm", "realm.toml"]) == 0
    of_manifest_rim = json.loads(capsys.readouterr().out)["rim"]
    assert run(["rim", "compute", "--json", "--", "run", *printed]) == 0
    assert json.loads(capsys.readouterr().out)["rim"] == of_manifest_rim


def test_qemu_is_started_with_the_same_machine(here: Path) -> None:
    plan = plan_of(manifest_of(MANIFEST + "[launch]\nvcpus = 3\nmemory_mib = 384\n"))
    measurement = measure_plan(plan)
    activation = Activation("rd", measurement.rim.hex(), measurement.bootargs, "/rsi", 5, 6)
    request = LaunchRequest(
        realm=uuid.UUID(int=1),
        plan=plan,
        activation=activation,
        disks=(Disk(Path("/disk"), "d0"),),
        network=None,
        console_log=Path("c"),
        vm_log=Path("v"),
    )
    words = arguments(request, MACHINES["x86_64"], "tcg", control=None, qmp=4)
    given = dict(itertools.pairwise(words))
    assert (given["-smp"], given["-m"]) == ("3", "384")
    # The very text that is measured into the device tree.
    assert os.fsencode(given["-append"]) in measurement.dtb
    assert words.count("-drive") == plan.disks


def test_the_rim_is_stable_with_the_shared_layout(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0, 1 and 50 applications: one RIM, no warning."""

    def text(count: int, layout: str) -> str:
        applications = "".join(f'[[policy.applications]]\nname = "app{number}"\n' for number in range(count))
        return MANIFEST + f'[devices]\ndisk_layout = "{layout}"\n' + applications

    rims = set()
    for count in (0, 1, 50):
        manifest = manifest_of(text(count, "shared"))
        assert warnings_of(manifest) == [] and of_manifest(Path("realm.toml")).notes == ()
        assert run(["rim", "compute", "--realm", "realm.toml"]) == 0
        shown = capsys.readouterr()
        assert shown.err == ""
        rims.add(shown.out.splitlines()[-1])
    assert len(rims) == 1
    separate = []
    for count in (1, 2):
        manifest_of(text(count, "per-application"))
        assert run(["rim", "compute", "--realm", "realm.toml"]) == 0
        shown = capsys.readouterr()
        assert f"the RIM holds for {count} application" in shown.err
        separate.append(shown.out.splitlines()[-1])
    assert separate[0] != separate[1]
