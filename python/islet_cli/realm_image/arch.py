"""What differs between the architectures of realms, as data."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from islet_cli.errors import InputError, UnavailableError


@dataclass(frozen=True)
class Arch:
    """One architecture.

    Attributes:
        name: As the realm manifest and the kernel spell it.
        debian: As Debian spells it.
        triplet: Debian's multiarch directory.
        loader: Path of the dynamic loader in a Debian root.
        elf_machine: `e_machine` of its ELF files.
        kernel_package: Debian's meta package of the kernel for virtual machines.
        accelerated: Kernel modules that speed up AES and that only some processors can use.
    """

    name: str
    debian: str
    triplet: str
    loader: str
    elf_machine: int
    kernel_package: str
    accelerated: tuple[str, ...]


ARCHES = {
    arch.name: arch
    for arch in (
        Arch(
            name="x86_64",
            debian="amd64",
            triplet="x86_64-linux-gnu",
            loader="lib64/ld-linux-x86-64.so.2",
            elf_machine=62,
            kernel_package="linux-image-cloud-amd64",
            accelerated=("aesni-intel",),
        ),
        Arch(
            name="aarch64",
            debian="arm64",
            triplet="aarch64-linux-gnu",
            loader="lib/ld-linux-aarch64.so.1",
            elf_machine=183,
            kernel_package="linux-image-cloud-arm64",
            accelerated=("aes-ce-blk",),
        ),
    )
}


def host() -> str:
    """The name of this machine's architecture."""
    machine = platform.machine()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def buildable(name: str) -> Arch:
    """Return the architecture `name`, which must be this machine's.

    The realm's own interpreter compiles the realm's modules, and its native module comes from this
    installation, so an image is built on a machine of its architecture.

    Raises:
        InputError: No such architecture is known.
        UnavailableError: It is another one than this machine's (`foreign-arch`).
    """
    arch = ARCHES.get(name)
    if arch is None:
        raise InputError(f"image.arch {name!r}: realms are {' or '.join(ARCHES)}", code="unknown-arch")
    if arch.name != host():
        raise UnavailableError(
            f"an image for {name} cannot be built on {host()}",
            code="foreign-arch",
            hint=f"build it on a {name} machine, or set image.arch to {host()}",
        )
    return arch
