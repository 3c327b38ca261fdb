"""Reading a Debian binary package without installing it.

Source: deb(5): an `ar` archive of `debian-binary`, `control.tar.*`, `data.tar.*`.
"""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from islet_cli.errors import InputError

_AR_MAGIC = b"!<arch>\n"
_UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "data.tar": lambda data: data,
    "data.tar.gz": lambda data: zlib.decompress(data, wbits=31),
    "data.tar.xz": lzma.decompress,
}


@dataclass(frozen=True)
class Packed:
    """One member of a package: a file's content, or a link's target."""

    path: str
    executable: bool
    data: bytes
    target: str | None = None


def members(package: bytes, *, what: str) -> Iterator[Packed]:
    """Yield the files and links of a package. Paths are relative (`usr/bin/mke2fs`).

    Raises:
        InputError: Not a Debian package, or compressed in a way that is not supported (`bad-package`).
    """
    name, data = _payload(package, what)
    try:
        with tarfile.open(fileobj=io.BytesIO(_UNPACK[name](data)), mode="r:") as archive:
            for member in archive:
                path = member.name.removeprefix("./")
                if member.issym():
                    yield Packed(path, False, b"", member.linkname)
                elif member.isfile():
                    content = archive.extractfile(member)
                    yield Packed(path, bool(member.mode & 0o100), content.read() if content else b"")
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise InputError(f"{what}: damaged package: {error}", code="bad-package") from error


def _payload(package: bytes, what: str) -> tuple[str, bytes]:
    if not package.startswith(_AR_MAGIC):
        raise InputError(f"{what}: not a Debian package", code="bad-package")
    position = len(_AR_MAGIC)
    while position + 60 <= len(package):
        header = package[position : position + 60]
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        size_text = header[48:58].strip()
        if header[58:] != b"`\n" or not size_text.isdigit():
            break
        size = int(size_text)
        if name.startswith("data.tar"):
            if name not in _UNPACK:
                raise InputError(f"{what}: {name} is not supported", code="bad-package")
            return name, package[position + 60 : position + 60 + size]
        position += 60 + size + size % 2
    raise InputError(f"{what}: damaged package: no data.tar", code="bad-package")
