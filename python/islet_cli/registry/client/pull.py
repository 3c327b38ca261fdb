"""Pulling a whole image: for the app manager piece by piece, for `islet image pull` into a layout."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from islet_cli.errors import InputError
from islet_cli.oci.descriptor import Descriptor
from islet_cli.progress import Report, silent
from islet_cli.registry.client.address import Credentials, TlsOptions
from islet_cli.registry.client.api import Fetched, RegistryClient

if TYPE_CHECKING:
    from islet_cli.oci.layout import Layout

PARALLEL = 3


def fetch_manifest_and_config(
    client: RegistryClient, name: str, reference: str, platform: str | None = None
) -> Fetched:
    """Fetch and check manifest and configuration: all that a signature check needs, before any layer.

    Raises:
        IsletError: As `RegistryClient.fetch_manifest` and `RegistryClient.fetch_config`.
    """
    return client.fetch_config(client.fetch_manifest(name, reference, platform))


def fetch_layers(
    client: RegistryClient,
    name: str,
    layers: Sequence[Descriptor],
    directory: Path,
    report: Report = silent,
    *,
    parallel: int = PARALLEL,
) -> list[Path]:
    """Fetch layers into `directory/HEX`, several at a time, each digest once.

    Args:
        client: Where to fetch.
        name: Repository name.
        layers: Descriptors, bottom first.
        directory: An existing private directory; what is there with the right digest is kept.
        report: Called with the bytes of all layers done, and their sum.
        parallel: Transfers at a time.

    Returns:
        The files in the order of `layers`; a digest that stands twice gives the same file twice.

    Raises:
        InputError: `descriptor_invalid`: the same digest stands with two sizes.
        IsletError: The first failure of any layer; the other transfers are left to end.
    """
    unique: dict[str, Descriptor] = {}
    for layer in layers:
        if unique.setdefault(layer.digest, layer).size != layer.size:
            raise InputError(f"{name}: layer {layer.digest} stands with two sizes", code="descriptor_invalid")
    batch = _Batch(client, name, list(unique.values()), directory, report)
    batch.run(max(1, min(parallel, len(unique))))
    return [directory / layer.digest.hex for layer in layers]


class _Batch:
    """Threads that take one descriptor after the other from a common list."""

    def __init__(
        self, client: RegistryClient, name: str, layers: list[Descriptor], directory: Path, report: Report
    ) -> None:
        self._client = client
        self._name = name
        self._pending = list(reversed(layers))
        self._directory = directory
        self._report = report
        self._total = sum(layer.size for layer in layers)
        self._done: dict[str, int] = {}
        self._failures: list[BaseException] = []
        self._lock = threading.Lock()

    def run(self, workers: int) -> None:
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers - 1)]
        for thread in threads:
            thread.start()
        try:
            self._work()
        finally:
            with self._lock:
                self._pending.clear()
            for thread in threads:
                thread.join()
        if self._failures:
            raise self._failures[0]

    def _work(self) -> None:
        while True:
            with self._lock:
                if self._failures or not self._pending:
                    return
                layer = self._pending.pop()
            try:
                self._client.fetch_blob(self._name, layer, self._directory, self._progress_of(layer))
            except BaseException as error:
                # Handed to the caller's thread, whatever it is.
                with self._lock:
                    self._failures.append(error)
                return

    def _progress_of(self, layer: Descriptor) -> Report:
        def progress(done: int, _total: int) -> None:
            with self._lock:
                self._done[layer.digest] = done
                self._report(sum(self._done.values()), self._total)

        return progress


def pull(
    address: str,
    name: str,
    reference: str,
    destination: Path,
    *,
    tls: TlsOptions | None = None,
    platform: str | None = None,
    tag: str | None = None,
    credentials: Credentials | None = None,
    report: Report = silent,
) -> Layout:
    """Pull one image into a new layout directory and validate the whole of it.

    Args:
        address: `HOST[:PORT]` of the registry.
        name: Repository name.
        reference: Tag or digest.
        destination: Must not exist; appears complete or not at all.
        tls: How the transport is secured; plain HTTP when None.
        platform: See `RegistryClient.fetch_manifest`.
        tag: Tag in the new layout; the default is `reference` when that is a tag.
        credentials: User and password, where the registry wants them.
        report: Progress in bytes of the layers.

    Raises:
        InputError: `exists`, and as `RegistryClient.fetch_manifest`.
        IsletError: As the client's methods.
    """
    from islet_cli.registry.client.save import save

    with RegistryClient(address, tls or TlsOptions(), credentials=credentials) as client:
        return save(client, name, reference, destination, platform=platform, tag=tag, report=report)
