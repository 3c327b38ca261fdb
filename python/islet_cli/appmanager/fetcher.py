"""Images from a registry, behind the one interface that provisioning knows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from islet_cli.appmanager.config import Launcher
from islet_cli.appmanager.policy import Selection
from islet_cli.errors import InputError, IsletError, UnavailableError

if TYPE_CHECKING:
    from islet_cli.registry.client import RegistryClient

Report = Callable[[int, int], None]
_PASSING_STATUS = frozenset((408, 429, 500, 502, 503, 504))


@dataclass(frozen=True)
class FetchedImage:
    """Manifest and configuration of an image, every digest checked, no signature yet.

    Attributes:
        manifest_digest: Digest of the manifest.
        annotations: The manifest's annotations.
        config: The exact configuration bytes.
        layers: Layer descriptors, lowest first.
        handle: What the source needs to fetch the layers.
    """

    manifest_digest: str
    annotations: Mapping[str, str]
    config: bytes
    layers: tuple[Any, ...]
    handle: Any = field(default=None, repr=False)


class ImageSource(Protocol):
    """Where images come from."""

    def fetch(self, selection: Selection) -> FetchedImage:
        """Fetch manifest and configuration; see `is_unreachable` for the errors."""

    def fetch_layers(self, selection: Selection, image: FetchedImage, directory: Path, report: Report) -> list[Path]:
        """Fetch all layers into `directory`, digests checked; the files in the order of `image.layers`."""


def is_unreachable(error: IsletError) -> bool:
    """Whether the registry is away, as opposed to having refused or served something wrong."""
    if isinstance(error, UnavailableError):
        return error.code == "registry_unreachable"
    return error.code == "http_status" and error.details.get("status") in _PASSING_STATUS


class RegistrySource:
    """Registries over the transport that the measured configuration demands.

    Args:
        launcher: Kind of transport and the registry CA.
        token_provider: Makes the token of an RA-TLS handshake from its challenge.
    """

    def __init__(self, launcher: Launcher, token_provider: Callable[[bytes], bytes] | None) -> None:
        self._launcher = launcher
        self._token_provider = token_provider
        self._clients: dict[str, RegistryClient] = {}
        self._lock = threading.Lock()

    def _client(self, address: str) -> RegistryClient:
        from islet_cli.registry.client import RegistryClient, TlsOptions

        with self._lock:
            client = self._clients.get(address)
            if client is None:
                kind = self._launcher.kind
                if kind not in ("none", "tls", "ra-tls"):
                    raise InputError(f"launcher {kind} has no registry", code="launcher")
                provider = self._token_provider if kind == "ra-tls" else None
                options = TlsOptions(kind, self._launcher.root_ca, provider)  # type: ignore[arg-type]
                client = self._clients[address] = RegistryClient(address, options)
            return client

    def fetch(self, selection: Selection) -> FetchedImage:
        from islet_cli.registry.client.pull import fetch_manifest_and_config

        info = selection.info
        fetched = fetch_manifest_and_config(self._client(selection.registry), info.name, info.version)
        document = fetched.document
        return FetchedImage(
            str(fetched.descriptor.digest), document.annotations, fetched.config, document.layers, fetched
        )

    def fetch_layers(self, selection: Selection, image: FetchedImage, directory: Path, report: Report) -> list[Path]:
        from islet_cli.registry.client.pull import fetch_layers

        client = self._client(selection.registry)
        return fetch_layers(client, selection.info.name, image.layers, directory, report)

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()
