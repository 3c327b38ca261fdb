"""Value types that the realm manifest and the launch plan share, each with its range."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

Vmm = Literal["kvmtool"]
Profile = Literal["tf-rmm", "islet"]
HashAlgo = Literal["sha256", "sha512"]
Console = Literal["serial", "virtio"]
IrqChip = Literal["gicv2", "gicv2m", "gicv3", "gicv3-its"]
DiskLayout = Literal["shared", "per-application"]
SealingFlag = Literal["Key", "Rim", "RealmId"]

# kvmtool clamps the vCPU count to 16; a plan beyond that would measure other vCPUs than the warden starts.
Vcpus = Annotated[int, Meta(ge=1, le=16)]
# The device tree and the kernel share the first 256 MiB; below 16 MiB no kernel boots. One TiB is the ceiling.
MemoryMib = Annotated[int, Meta(ge=16, le=1 << 20)]
# Bits; the architecture allows 128 to 2048 in steps of 128, 0 means no SVE.
SveVl = Annotated[int, Meta(ge=0, le=2048, multiple_of=128)]
# PMCR_EL0.N is five bits wide.
PmuCounters = Annotated[int, Meta(ge=0, le=31)]
# kvmtool takes at most four disk images.
Disks = Annotated[int, Meta(ge=0, le=4)]
Nics = Annotated[int, Meta(ge=0, le=8)]
# The console text comes before it, and the whole is cut at 2047 bytes: a longer text would be cut silently.
Cmdline = Annotated[str, Meta(max_length=1984, pattern=r"^[\x20-\x7e]*\Z")]

U63_MAX = (1 << 63) - 1
Svn = Annotated[int, Meta(ge=1, le=U63_MAX)]
SecurityVersion = Annotated[int, Meta(ge=0, le=U63_MAX)]

Sha256Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
RpvHex = Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]
AbsolutePath = Annotated[str, Meta(pattern=r"^/[^\x00]*\Z", max_length=4095)]
RelativeOrAbsolutePath = Annotated[str, Meta(pattern=r"^[^\x00]+\Z", max_length=4095)]

RealmName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
# The realm_id field of the metadata block: printable ASCII.
RealmId = Annotated[str, Meta(pattern=r"^[\x20-\x7e]{1,128}\Z")]
# The metadata block stores MAJOR.MINOR.PATCH and nothing else.
Version = Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\Z", max_length=62)]
# OCI distribution-spec 1.1, "Pulling manifests": the grammar of <name>.
ApplicationName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*\Z",
        max_length=255,
    ),
]
# host[:port] as ProvisionInfo carries it; an IPv6 address stands in brackets.
RegistryName = Annotated[str, Meta(pattern=r"^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?\Z", max_length=261)]
Personalization = Annotated[str, Meta(max_length=64)]
