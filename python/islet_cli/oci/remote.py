"""Images in registries, fetched into layouts for the commands that work on files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from islet_cli.errors import InputError
from islet_cli.oci.digest import Digest
from islet_cli.oci.names import RemoteImage
from islet_cli.progress import Report, silent

if TYPE_CHECKING:
    from islet_cli.registry.client.address import TlsOptions
    from islet_cli.registry.client.push import Sent

Tls = Literal["none", "tls"]
_SYSTEM_ROOTS = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
    Path("/etc/ssl/cert.pem"),
)


def fetch(
    remote: RemoteImage,
    output: Path,
    *,
    tls: Tls = "tls",
    root_ca: Path | None = None,
    platform: str | None = None,
    credentials: Path | None = None,
    report: Report = silent,
) -> Digest:
    """Pull an image into a new layout; returns its digest.

    Args:
        remote: Which image.
        output: The layout to make.
        tls: `none` for plain HTTP.
        root_ca: PEM with the registry's root; the system's when None.
        platform: `OS/ARCHITECTURE`, for an index.
        credentials: File with `USER:PASSWORD`, where the registry wants them.
        report: Progress in bytes of the layers.

    Raises:
        InputError: `exists`, or no root certificates (`tls_config`).
        IsletError: As the registry client.
    """
    from islet_cli.registry.client.address import read_credentials
    from islet_cli.registry.client.pull import pull

    pulled = pull(
        remote.address,
        remote.repository,
        remote.reference,
        output,
        tls=_tls_options(tls, root_ca),
        platform=platform,
        credentials=read_credentials(credentials) if credentials is not None else None,
        report=report,
    )
    return pulled.index.manifests[0].digest


def send(
    layout: Path,
    source: str,
    remote: RemoteImage,
    *,
    tls: Tls = "tls",
    root_ca: Path | None = None,
    credentials: Path | None = None,
    mount_from: str | None = None,
    chunk_bytes: int,
    report: Report = silent,
) -> Sent:
    """Push an image of a layout; returns what was sent.

    Args:
        layout: A layout directory; all of it is checked first.
        source: Tag or digest in it.
        remote: Where to; an address `unix:/PATH` is a socket.
        tls, root_ca, credentials, report: As for `fetch`.
        mount_from, chunk_bytes: As for `registry.client.push.push`.

    Raises:
        IsletError: The layout is damaged, or as the registry client.
    """
    from islet_cli.oci.layout import load
    from islet_cli.registry.client.address import read_credentials
    from islet_cli.registry.client.http import Transport
    from islet_cli.registry.client.push import push

    known = read_credentials(credentials) if credentials is not None else None
    transport = Transport(remote.address, _tls_options(tls, root_ca), credentials=known)
    try:
        return push(
            transport,
            load(layout),
            source,
            remote.repository,
            remote.reference,
            mount_from=mount_from,
            chunk_bytes=chunk_bytes,
            report=report,
        )
    finally:
        transport.close()


def _tls_options(tls: Tls, root_ca: Path | None) -> TlsOptions:
    from islet_cli.registry.client.address import TlsOptions

    return TlsOptions() if tls == "none" else TlsOptions("tls", root_ca or _system_root())


def _system_root() -> Path:
    for path in _SYSTEM_ROOTS:
        if path.is_file():
            return path
    raise InputError("this machine has no bundle of root certificates", code="tls_config", hint="name one: --root-ca")


@contextmanager
def fetched(
    remote: RemoteImage, *, tls: Tls = "tls", root_ca: Path | None = None, report: Report = silent
) -> Iterator[Path]:
    """A temporary layout with an image of a registry."""
    with tempfile.TemporaryDirectory(prefix="islet-image-") as directory:
        layout = Path(directory) / "layout"
        fetch(remote, layout, tls=tls, root_ca=root_ca, report=report)
        yield layout
