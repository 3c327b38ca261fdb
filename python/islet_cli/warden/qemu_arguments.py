"""The QEMU command line of a realm, assembled from small parts.

Differences between machines are data (`MACHINES`). What QEMU loads as kernel and initramfs are the
descriptors of the measured copies, never paths.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

from islet_cli.errors import InputError, UnavailableError
from islet_cli.warden.network import Network
from islet_cli.warden.runner import Disk, LaunchRequest


@dataclass(frozen=True)
class Machine:
    """What QEMU needs to know about one architecture."""

    arch: str
    binary: str
    package: str
    machine: str
    emulated_cpu: str


MACHINES = {
    "x86_64": Machine("x86_64", "qemu-system-x86_64", "qemu-system-x86", "pc", "max"),
    "aarch64": Machine(
        "aarch64", "qemu-system-aarch64", "qemu-system-arm", "virt,gic-version=3", "max,pauth-impdef=on"
    ),
}

# (offset, magic, architecture): the arm64 Image header; the x86 boot protocol's header.
_KERNELS = ((56, b"ARM\x64", "aarch64"), (0x202, b"HdrS", "x86_64"))


def machine_of(kernel: int) -> Machine:
    """Tell the machine from the kernel's own header.

    Args:
        kernel: Descriptor of the kernel.

    Raises:
        InputError: Neither an arm64 Image nor an x86 bzImage (`bad-config`).
    """
    for offset, magic, arch in _KERNELS:
        if os.pread(kernel, len(magic), offset) == magic:
            return MACHINES[arch]
    raise InputError("the realm's kernel is neither an arm64 Image nor an x86 bzImage", code="bad-config")


def is_native(machine: Machine) -> bool:
    """Whether the host could run this machine under KVM."""
    return platform.machine() == machine.arch


def missing(machine: Machine) -> UnavailableError:
    """The error for an absent QEMU."""
    return UnavailableError(
        f"{machine.binary} is not installed", code="unavailable", hint=f"run: apt-get install {machine.package}"
    )


def escape(value: object) -> str:
    """A value inside a comma-separated QEMU option."""
    return str(value).replace(",", ",,")


def arguments(request: LaunchRequest, machine: Machine, accel: str, *, control: int | None, qmp: int) -> list[str]:
    """The arguments after the binary.

    Args:
        request: The launch.
        machine: Its machine.
        accel: `kvm` or `tcg`.
        control: Descriptor of QEMU's end of the control channel; None when the transport is vsock.
        qmp: Descriptor of QEMU's end of the monitor.
    """
    return [
        *_base(request, machine, accel),
        *_boot(request),
        *_console(),
        *_channels(request, control, qmp),
        *_disks(request.disks),
        *_network(request.network, request.plan.nics),
        *_vsock(request.vsock_cid),
    ]


def _base(request: LaunchRequest, machine: Machine, accel: str) -> list[str]:
    name = request.machine if request.machine and machine.arch == "aarch64" else machine.machine
    emulated = request.cpu if request.cpu and machine.arch == "aarch64" else machine.emulated_cpu
    return [
        *("-name", f"islet-{request.realm}"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", name),
        *("-accel", "kvm" if accel == "kvm" else "tcg,thread=multi"),
        *("-cpu", "host" if accel == "kvm" else emulated),
        *("-smp", str(request.plan.vcpus)),
        *("-m", str(request.plan.memory_mib)),
    ]


def _boot(request: LaunchRequest) -> list[str]:
    activation = request.activation
    return [
        *("-kernel", f"/proc/self/fd/{activation.kernel_fd}"),
        *("-initrd", f"/proc/self/fd/{activation.initramfs_fd}"),
        *("-append", activation.bootargs),
    ]


def _console() -> list[str]:
    return ["-chardev", "stdio,id=con0,signal=off", "-serial", "chardev:con0"]


def _channels(request: LaunchRequest, control: int | None, qmp: int) -> list[str]:
    ports = [("rsi", "islet.rsi.0", f"path={escape(request.activation.rsi_socket)}")]
    if control is not None:
        ports.append(("ctl", "islet.ctl.0", f"fd={control}"))
    out = ["-device", "virtio-serial-pci"]
    for number, (name, port, end) in enumerate(ports, start=1):
        out += ["-chardev", f"socket,id={name}0,{end}"]
        out += ["-device", f"virtserialport,chardev={name}0,id={name},name={port},nr={number}"]
    return [*out, "-chardev", f"socket,id=qmp0,fd={qmp}", "-mon", "chardev=qmp0,mode=control"]


def _disks(disks: tuple[Disk, ...]) -> list[str]:
    out = []
    for number, disk in enumerate(disks):
        out += ["-drive", f"file={escape(disk.path)},format=raw,if=none,id=d{number},discard=unmap"]
        out += ["-device", f"virtio-blk-pci,drive=d{number},serial={disk.serial}"]
    return out


def _network(network: Network | None, nics: int) -> list[str]:
    if network is None or nics == 0:
        return ["-nic", "none"]
    user = ["user,id=mynet0", *([] if network.internet else ["restrict=on"])]
    user += [f"hostfwd=tcp:{item.address}:{item.host_port}-:{item.guest_port}" for item in network.publish]
    user += [f"guestfwd=tcp:10.0.2.100:{forward.port}-cmd:{escape(forward.command())}" for forward in network.forwards]
    mac = f",mac={network.mac}" if network.mac else ""
    return ["-netdev", ",".join(user), "-device", f"{network.device},netdev=mynet0{mac},romfile="]


def _vsock(cid: int | None) -> list[str]:
    return [] if cid is None else ["-device", f"vhost-vsock-pci,id=vhost-vsock-pci0,guest-cid={cid}"]
