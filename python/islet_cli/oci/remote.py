"""Images in registries, fetched into layouts for the commands that work on files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from islet_cli.errors import InputError
from islet_cli.oci.digest import Digest
from islet_cli.oci.names import RemoteImage
from islet_cli.progress import Report, silent

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
    report: Report = silent,
) -> Digest:
    """Pull an image into a new layout; returns its digest.

    Args:
        remote: Which image.
        output: The layout to make.
        tls: `none` for plain HTTP.
        root_ca: PEM with the registry's root; the system's when None.
        platform: `OS/ARCHITECTURE`, for an index.
        report: Progress in bytes of the layers.

    Raises:
        InputError: `exists`, or no root certificates (`tls_config`).
        IsletError: As the registry client.
    """
    from islet_cli.registry.client.address import TlsOptions
    from islet_cli.registry.client.pull import pull

    options = TlsOptions() if tls == "none" else TlsOptions("tls", root_ca or _system_root())
    pulled = pull(
        remote.address, remote.repository, remote.reference, output, tls=options, platform=platform, report=report
    )
    return pulled.index.manifests[0].digest


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
