"""The second dialect: host capabilities, three VMMs, and an independent replay of the sequence."""

from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Sequence as Arguments
from dataclasses import replace
from pathlib import Path

import pytest

from islet_cli import _native
from islet_cli.cli.main import run
from islet_cli.errors import InputError
from islet_cli.rim.boot_files import open_kernel
from islet_cli.rim.capabilities import BUILT_IN, Capabilities, combine, options_of
from islet_cli.rim.diff import Side, compare
from islet_cli.rim.explain import explain
from islet_cli.rim.measure import measure_request
from islet_cli.rim.request import REALM_VM, Request, of_command_line, understand
from islet_cli.rim.sequence import Sequence
from rim_files import BASE, PAGE, noise, pe_kernel, write

MIB = 1 << 20
FVP = combine(["fvp", "rmm-1.0-eac5"], Capabilities())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    launch = of_command_line(["run", *BASE])
    (tmp_path / "dtb").write_bytes(measure_request(launch).dtb[:2300])
    return tmp_path


def request(words: Arguments[str], host: Capabilities = FVP, **options: object) -> Request:
    return of_command_line(words, dialect=REALM_VM, host=host, host_name="test", **options)


def sequence(words: Arguments[str], host: Capabilities = FVP, **options: object) -> Sequence:
    found = understand(request(words, host, **options))
    assert isinstance(found, Sequence)
    return found


def replayed(
    launch: Sequence, sizes: Arguments[int], blobs: list[tuple[int, bytes]], rec: tuple[int, int], log: int | None
) -> str:
    """The RIM of a launch, step by step; `blobs` by address, `sizes` the block sizes from large to small."""
    name = launch.hash_algo

    def digest(data: bytes) -> bytes:
        return hashlib.new(name, data).digest()

    def extend(kind: int, body: bytes) -> None:
        nonlocal rim
        head = bytes([kind]).ljust(8, b"\0") + struct.pack("<Q", 256) + rim.ljust(64, b"\0")
        rim = digest((head + body).ljust(256, b"\0"))

    page = bytearray(PAGE)
    host = launch.capabilities
    page[0] = bool(host.lpa2) | bool(host.sve_vl) << 1 | bool(host.pmu) << 2
    page[8] = host.ipa_bits or 0
    page[0x10] = (host.sve_vl or 128) // 128 - 1
    page[0x18], page[0x20] = (host.num_bps or 0) - 1, (host.num_wps or 0) - 1
    page[0x28] = (host.pmu_num_ctrs or 0) if host.pmu else 0
    page[0x30] = name == "sha512"
    rim = digest(bytes(page))
    address, end = launch.ram_base, launch.ram_base + launch.ram_size
    while address < end:
        size = next(size for size in sizes if address % size == 0 and address + size <= end)
        extend(2, struct.pack("<QQ", address, address + size))
        address += size
    for start, content in blobs:
        content = bytes(start % PAGE) + content
        content += bytes(-len(content) % PAGE)
        for at in range(0, len(content), PAGE):
            body = struct.pack("<QQ", start - start % PAGE + at, 1) + digest(content[at : at + PAGE])
            extend(0, body)
    parameters = bytearray(PAGE)
    struct.pack_into("<Q", parameters, 0, 1)
    struct.pack_into("<Q", parameters, 0x200, rec[0])
    struct.pack_into("<Q", parameters, 0x300, rec[1])
    extend(1, digest(bytes(parameters)))
    for number in range(16 if log is not None else 0):
        extend(0, struct.pack("<QQ", (log or 0) + number * PAGE, 0))
    return rim.hex()


@pytest.mark.parametrize(
    ("algorithm", "rim"),
    [
        ("sha256", "6739dfb22b75ee1268d08dfa8369f501bc0b066243553f069f560d1fa1172973"),
        (
            "sha512",
            "799e434048fb57eb9d4f0e2a2b98158720377252deab2bdfcd69b5a8f82237f4"
            "34bd6bb1c75bf160a2d49382f733b3439a3ff769e4ea5dd9a6f72239d44bbbab",
        ),
    ],
)
def test_known_answers(algorithm: str, rim: str) -> None:
    """Realm parameters alone: 48 bits, two breakpoints and watchpoints, nothing else."""

    class Bare:
        hash_algo, ipa_bits, lpa2, sve_vl_bits, num_bps, num_wps = algorithm, 48, False, 0, 2, 2
        pmu_counters = start = log = None
        ram: tuple[()] = ()
        blobs: tuple[()] = ()

    assert _native.rim.measure_sequence(Bare())[0].hex() == rim  # type: ignore[arg-type]


def test_host_capabilities_only_lower(tmp_path: Path) -> None:
    assert combine(["fvp", "qemu-max-8.2"], Capabilities()) == Capabilities(
        ipa_bits=52, num_bps=6, num_wps=4, pmu_num_ctrs=6, sve_vl=512, pmu=True, lpa2=True
    )
    assert combine(["fvp", "kvm"], Capabilities()).lpa2 is False
    (tmp_path / "host.toml").write_text("num_bps = 8\npmu = false\n")
    mine = combine(["rmm-1.0-eac5", str(tmp_path / "host.toml"), "fvp"], options_of(["num_wps=5", "lpa2=true"]))
    assert (mine.num_bps, mine.num_wps, mine.pmu, mine.lpa2) == (2, 5, False, True)
    assert set(BUILT_IN) == {"fvp", "qemu-max-8.2", "kvm", "rmm-1.0-eac5"}


@pytest.mark.parametrize(
    "text", ["num_bps = 1", "sve_vl = 100", "pmu_num_ctrs = 32", "colour = 1", "ipa_bits = 'x'", "="]
)
def test_capability_files_are_checked(tmp_path: Path, text: str) -> None:
    (tmp_path / "host.toml").write_text(text)
    with pytest.raises(InputError) as refused:
        combine([str(tmp_path / "host.toml")], Capabilities())
    assert refused.value.code == "bad-config"


@pytest.mark.parametrize("options", [[], ["--measurement-log"], ["--measurement-algo", "sha512"], ["-m", "6146"]])
def test_kvmtool_replayed(here: Path, options: list[str]) -> None:
    words = ["run", *BASE, *options]
    launch = sequence(words, dtb=Path("dtb"))
    kernel, initrd = (here / "kernel").read_bytes(), (here / "initrd").read_bytes()
    log = 0x8FFF_0000 if "--measurement-log" in options else None
    # The log stands above the device tree's room, whose alignment swallows the difference.
    dtb_at = 0x8FE0_0000
    initrd_at = (dtb_at - len(initrd) - 4 + 3) // 4 * 4
    blobs = [
        (0x8000_0000, kernel),
        (initrd_at, initrd),
        (dtb_at, (here / "dtb").read_bytes().ljust(65536, b"\0")),
    ]
    sizes = (2 * MIB, PAGE)
    assert launch.ipa_bits == (34 if "6146" in options else 33)
    measured = measure_request(request(words, dtb=Path("dtb")))
    assert measured.rim.hex() == replayed(launch, sizes, blobs, (0x8000_0000, dtb_at), log)


def test_kvmtool_builds_a_tree_and_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launch = sequence(["run", *BASE])
    assert launch.dtb_given is None and launch.device_tree.size == 65536
    # Not the measurer's stale bytes behind the blob.
    total = int.from_bytes(launch.device_tree.content[4:8], "big")
    assert not any(launch.device_tree.content[total:])
    options = ["--dialect", REALM_VM, "--host", "fvp", "--host", "rmm-1.0-eac5"]
    assert run(["rim", "compute", *options, "--", "run", *BASE]) == 0
    assert "warning: the device tree is built as kvmtool of RMM 1.0-EAC5 writes it" in capsys.readouterr().err
    assert run(["rim", "explain", *options, "--dtb", "dtb", "--", "run", *BASE]) == 0
    assert "Device tree (given: dtb; at 0x8fe00000" in capsys.readouterr().out


def test_arguments_are_explained_by_what_they_do_here(here: Path) -> None:
    """With a given device tree, the number of vCPUs decides nothing; with a built one, it does."""
    for dtb, expected in ((Path("dtb"), []), (None, ["content and place of the device tree"])):
        shown = {item.argument: item for item in explain(request(["run", *BASE], dtb=dtb)).arguments}
        assert shown["-c 2"].influences == expected
        remark = "" if dtb is None else "nothing besides the device tree, which is given"
        assert shown["-c 2"].remark == remark
        assert "RIPAS of all memory" in shown["-m 256"].influences


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], Capabilities(pmu=True, pmu_num_ctrs=8, sve_vl=512)),
        (["--pmu-counters", "3"], Capabilities(pmu=True, pmu_num_ctrs=3, sve_vl=512)),
        (["--pmu-counters", "20", "--sve-max-vl", "1024"], Capabilities(pmu=True, pmu_num_ctrs=8, sve_vl=512)),
        (["--sve-max-vl=128"], Capabilities(pmu=True, pmu_num_ctrs=8, sve_vl=128)),
        (["--disable-sve"], Capabilities(pmu=True, pmu_num_ctrs=8, sve_vl=0)),
    ],
)
def test_arguments_lower_the_host(here: Path, options: list[str], expected: Capabilities) -> None:
    found = sequence(["run", *BASE, *options]).capabilities
    assert (found.pmu, found.pmu_num_ctrs, found.sve_vl) == (expected.pmu, expected.pmu_num_ctrs, expected.sve_vl)


def test_an_option_cannot_give_a_pmu(here: Path) -> None:
    without = replace_pmu(FVP)
    assert sequence(["run", *BASE, "--pmu"], host=without).pmu_counters is None


def replace_pmu(host: Capabilities) -> Capabilities:
    import msgspec

    return msgspec.structs.replace(host, pmu=False)


def test_a_compressed_kernel_is_unpacked(here: Path) -> None:
    plain = measure_request(request(["run", *BASE]))
    (here / "kernel").write_bytes(gzip.compress(pe_kernel()))
    assert measure_request(request(["run", *BASE])).rim == plain.rim
    assert explain(request(["run", *BASE])).rim == plain.rim.hex()


@pytest.mark.parametrize(
    "content", [noise("x", 100), b"\x1f\x8b" + noise("x", 100), gzip.compress(pe_kernel())[:500], b""]
)
def test_other_kernels_are_refused(here: Path, content: bytes) -> None:
    (here / "kernel").write_bytes(content)
    with pytest.raises(InputError) as refused:
        open_kernel(Path("kernel"))
    assert refused.value.code == "not-an-image"


def test_compressed_kernels_are_compared_by_what_they_unpack_to(here: Path) -> None:
    image = bytearray(pe_kernel())
    (here / "kernel").write_bytes(gzip.compress(image))
    image[9000] ^= 1
    (here / "other").write_bytes(gzip.compress(image))
    words = [["run", *(name if word == "kernel" else word for word in BASE)] for name in ("kernel", "other")]
    causes = compare(*(Side(explain(request(line))) for line in words)).causes
    (cause,) = [cause for cause in causes if cause.where == "kernel kernel / other"]
    assert (
        cause.old is None and cause.detail == "1 of 10 granules differs: granule 2 (file offset 0x2000, IPA 0x80002000)"
    )


def test_firmware(here: Path) -> None:
    words = ["run", "--realm", "-c", "1", "-m", "64", "-f", "initrd", "--nodefaults"]
    launch = sequence(words, dtb=Path("dtb"))
    dtb_at = 0x83E0_0000
    blobs = [(0x8000_0000, (here / "initrd").read_bytes()), (dtb_at, (here / "dtb").read_bytes().ljust(65536, b"\0"))]
    rim = replayed(launch, (2 * MIB, PAGE), blobs, (0x8000_0000, dtb_at), None)
    assert measure_request(request(words, dtb=Path("dtb"))).rim.hex() == rim


QEMU = ["qemu-system-aarch64", "-M", "virt,gic-version=3,confidential-guest-support=rme0", "-cpu", "host", "-m", "512M"]
QEMU += ["-smp", "2", "-object", "rme-guest,id=rme0,measurement-algorithm=sha256", "-kernel", "kernel", "-nographic"]


@pytest.mark.parametrize("with_log", [False, True])
def test_qemu_replayed(here: Path, with_log: bool) -> None:
    words = [*QEMU, "-initrd", "initrd", "-append", "console=ttyAMA0", "-device", "virtio-net-pci,netdev=n"]
    if with_log:
        words = [word.replace("sha256", "sha256,measurement-log=on") for word in words]
    launch = sequence(words, vmm="qemu", dtb=Path("dtb"))
    assert (launch.ipa_bits, launch.hash_algo, launch.ram_size) == (41, "sha256", 512 * MIB)
    initrd = (here / "initrd").read_bytes()
    initrd_at = 0x4800_0000
    dtb_at = 0x4820_0000
    blobs = [(0x4000_0000, pe_kernel()), (initrd_at, initrd), (dtb_at, (here / "dtb").read_bytes())]
    log = dtb_at + MIB if with_log else None
    rim = replayed(launch, (1 << 30, 2 * MIB, PAGE), blobs, (0x4000_0000, dtb_at), log)
    assert measure_request(request(words, vmm="qemu", dtb=Path("dtb"))).rim.hex() == rim


def test_qemu_firmware(here: Path) -> None:
    words = ["-M", "virt", "-bios", "initrd", "-m", "size=64M", "-dtb", "dtb"]
    launch = sequence(words, vmm="qemu")
    assert launch.hash_algo == "sha512" and launch.start == (0, 0) and launch.dtb_given == "dtb"
    blobs = [(0, (here / "initrd").read_bytes()), (0x4000_0000, (here / "dtb").read_bytes())]
    rim = replayed(launch, (1 << 30, 2 * MIB, PAGE), blobs, (0, 0), None)
    assert measure_request(request(words, vmm="qemu")).rim.hex() == rim


@pytest.mark.parametrize(
    ("options", "limits"),
    [
        ("host,num-breakpoints=2,num-watchpoints=2", Capabilities(num_bps=2, num_wps=2)),
        ("host,pmu=off", Capabilities(pmu=False)),
        ("host,sve=off", Capabilities(sve_vl=0)),
        ("host,sve512=off", Capabilities(sve_vl=256)),
        ("host,num-pmu-counters=4", Capabilities(pmu_num_ctrs=4)),
    ],
)
def test_qemu_cpu_options_lower(here: Path, options: str, limits: Capabilities) -> None:
    host = BUILT_IN["fvp"]
    words = ["-M", "virt", "-kernel", "kernel", "-cpu", options]
    found = sequence(words, host=host, vmm="qemu", dtb=Path("dtb")).capabilities
    assert found == host.lowered(limits).lowered(Capabilities(ipa_bits=41))


def test_cloud_hypervisor_replayed(here: Path) -> None:
    words = [
        "cloud-hypervisor",
        "--kernel",
        "kernel",
        "--initramfs=initrd",
        "--memory",
        "size=256M",
        "--cpus",
        "boot=2",
    ]
    words += ["--platform", "measurement_algo=sha256", "--cmdline", "x"]
    launch = sequence(words, vmm="cloud-hypervisor", dtb=Path("dtb"))
    assert (launch.ipa_bits, launch.sve_vl_bits) == (48, 0)
    initrd = (here / "initrd").read_bytes()
    initrd_at = 0x5000_0000 - -(-len(initrd) // PAGE) * PAGE
    blobs = [(0x4000_0000, (here / "dtb").read_bytes()), (0x4040_0000, pe_kernel()), (initrd_at, initrd)]
    sizes = (1 << 39, 1 << 30, 2 * MIB, PAGE)
    rim = replayed(launch, sizes, blobs, (0x4040_0000, 0x4000_0000), None)
    explanation = explain(request(words, vmm="cloud-hypervisor", dtb=Path("dtb")))
    assert explanation.rim == rim
    assert explanation.device_tree.given == "dtb" and explanation.notes


@pytest.mark.parametrize(
    ("vmm", "words", "message"),
    [
        ("kvmtool", ["--realm", "-c", "1", "-k", "kernel", "-i", "initrd"], "no memory size"),
        ("kvmtool", [*BASE, "-m", "255"], "not a multiple of 2 MiB"),
        ("kvmtool", [*BASE, "-m", "256@4G"], "this dialect knows RAM at 0x80000000 only"),
        ("kvmtool", [*BASE, "--irqchip=gicv2"], "realms have a GICv3"),
        ("kvmtool", [*BASE, "--sve-max-vl", "100"], "Expected `int` that's a multiple of 128"),
        ("kvmtool", [*BASE, "-m", "64P"], "more RAM than a realm can address"),
        ("qemu", ["-kernel", "kernel", "-plugin", "x"], "-plugin: unknown option"),
        ("qemu", ["-kernel", "kernel", "-device", "virtio-iommu-pci"], "unknown device"),
        ("qemu", ["-kernel", "kernel", "-M", "q35"], "unsupported: type=q35"),
        ("qemu", ["-kernel", "kernel", "-cpu", "max"], "unsupported: model=max"),
        ("qemu", ["-kernel", "kernel", "-bios", "initrd"], "with -bios the firmware loads it"),
        ("qemu", ["-m", "512"], "neither -kernel nor -bios is given"),
        ("qemu", ["-kernel", "kernel", "-m", "300G"], "more than 255 GiB"),
        ("qemu", ["-kernel", "kernel", "-m", "x"], "not a size"),
        ("qemu", ["-kernel"], "a value is missing"),
        ("qemu", ["kernel"], "not an option"),
        ("cloud-hypervisor", ["--kernel", "kernel", "--memory", "size=4G"], "at most 3008 MiB"),
        ("cloud-hypervisor", ["--kernel", "kernel", "--numa", "x"], "--numa: unknown option"),
        ("cloud-hypervisor", ["--memory", "size=1G"], "no --kernel is given"),
        ("cloud-hypervisor", ["--kernel", "kernel", "--platform", "measurement_algo=md5"], "unknown algorithm md5"),
    ],
)
def test_what_is_not_known_is_refused(here: Path, vmm: str, words: list[str], message: str) -> None:
    with pytest.raises(InputError) as refused:
        measure_request(request(words, vmm=vmm, dtb=Path("dtb")))
    assert message in refused.value.message and "\n" not in refused.value.message


@pytest.mark.parametrize("vmm", ["qemu", "cloud-hypervisor"])
def test_other_vmms_need_their_device_tree(here: Path, vmm: str) -> None:
    with pytest.raises(InputError) as refused:
        measure_request(request(["--kernel", "kernel"], vmm=vmm))
    assert refused.value.code == "device-tree-needed" and "--dtb FILE" in str(refused.value.hint)


@pytest.mark.parametrize("content", [b"", b"\xd0\x0d\xfe\xed", noise("dtb", 200)])
def test_a_damaged_device_tree_is_refused(here: Path, content: bytes) -> None:
    (here / "dtb").write_bytes(content)
    with pytest.raises(InputError) as refused:
        measure_request(request(["run", *BASE], dtb=Path("dtb")))
    assert refused.value.code == "device-tree"


def test_files_that_do_not_fit(here: Path) -> None:
    with (here / "initrd").open("wb") as file:
        file.truncate(300 * MIB)
    with pytest.raises(InputError, match=r"lies outside RAM|does not fit"):
        measure_request(request(["run", *BASE], dtb=Path("dtb")))
    launch = replace(sequence([*QEMU], vmm="qemu", dtb=Path("dtb")), ram_size=MIB)
    parts = tuple(replace(part, start=0x4000_0000) for part in launch.parts)
    with pytest.raises(InputError, match="lies where another file already is"):
        _native.rim.measure_sequence(replace(launch, parts=parts))
