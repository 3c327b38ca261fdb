"""The registry server: the native listener in front, the application on a Unix socket behind.

Source: docs/architecture.md; the boundary between the two is described in docs/registry.md.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from islet_cli import _native
from islet_cli.errors import InputError
from islet_cli.fsutil import read_file
from islet_cli.registry.admission import Admission, Policy
from islet_cli.registry.app import RegistryApp
from islet_cli.registry.backend import MAX_SOCKET_PATH, backend, bind_error
from islet_cli.registry.catalogue import Catalogue
from islet_cli.registry.client.address import Mode
from islet_cli.registry.log import AccessLog
from islet_cli.registry.push_listener import PushOptions, push_listener
from islet_cli.registry.push_listener import check as check_push

logger = logging.getLogger(__name__)

EMULATED_WARNING = "emulated: no protection from the host"
_DIRECTORY_PREFIX = "registry-"
_SOCKET_NAME = "backend.sock"


@dataclass(frozen=True)
class ServeOptions:
    """What a registry serves, where and to whom.

    Attributes:
        root: The store: one OCI image layout per application.
        listen: `ADDR:PORT`; port 0 takes any.
        tls: `none`, `tls` or `ra-tls`.
        certificate: PEM chain, needed unless `tls` is `none`; likewise `key`.
        policy: Needed in mode `ra-tls`.
        access_log: File of refusals and admissions; None sends them to the program's log.
        push: The second listener, which takes pushes; None: there is none.
    """

    root: Path
    listen: str = "127.0.0.1:1337"
    tls: Mode = "ra-tls"
    certificate: Path | None = None
    key: Path | None = None
    policy: Policy | None = None
    access_log: Path | None = None
    push: PushOptions | None = None


class RegistryServer:
    """A running registry."""

    def __init__(
        self, options: ServeOptions, listener: _native.ratls.Server, catalogue: Catalogue, push: str | None
    ) -> None:
        self.options = options
        self.catalogue = catalogue
        self.address = listener.address
        self.push_address = push
        self._listener = listener

    def info(self) -> dict[str, Any]:
        """What others need to know: `{"address", "tls", "allow_emulated"}`, `push` and a warning where there is one."""
        policy = self.options.policy
        emulated = self.options.tls == "ra-tls" and policy is not None and policy.allow_emulated
        out: dict[str, Any] = {"address": self.address, "tls": self.options.tls, "allow_emulated": emulated}
        if self.push_address is not None:
            out["push"] = self.push_address
        if emulated:
            out["warning"] = EMULATED_WARNING
        return out


@contextlib.contextmanager
def running(options: ServeOptions, runtime_dir: Path | None = None) -> Iterator[RegistryServer]:
    """Serve on threads of their own for the length of the block; the address is bound when it begins.

    Args:
        options: See `ServeOptions`.
        runtime_dir: Private directory for the backend's socket; the default is a new temporary one.

    Raises:
        UnavailableError: `port-busy`.
        InputError: Address, certificate, key, store or policy are not usable.
    """
    catalogue = Catalogue(options.root)
    admission = _admission(options)
    if options.push is not None:
        check_push(options.push)
    access = AccessLog(options.access_log)
    with contextlib.ExitStack() as stack:
        socket_path = stack.enter_context(_socket_path(runtime_dir))
        served = stack.enter_context(backend(RegistryApp(catalogue), socket_path))
        listener = _listen(options, served, catalogue.root, access, admission)
        stack.callback(listener.stop)
        push = None
        if options.push is not None:
            push = stack.enter_context(push_listener(options.push, catalogue, socket_path.parent, access.record))
        threading.Thread(target=_preload, args=(catalogue,), name="preload", daemon=True).start()
        yield RegistryServer(options, listener, catalogue, push)


def _preload(catalogue: Catalogue) -> None:
    """Load every application, so that broken ones are in the log before anyone asks for them."""
    try:
        catalogue.preload()
    except Exception:
        logger.exception("the applications could not be listed")


def _admission(options: ServeOptions) -> Admission | None:
    if options.tls != "ra-tls":
        return None
    policy = options.policy
    if policy is None or not policy.cpaks or not policy.references:
        missing = "platform key" if policy is None or not policy.cpaks else "reference values"
        raise InputError(
            f"mode ra-tls without {missing} would admit nobody",
            code="no-policy",
            hint="pass --cpak [emulated:]FILE and --reference FILE, or serve from a workspace",
        )
    return Admission(policy)


@contextlib.contextmanager
def _socket_path(runtime_dir: Path | None) -> Iterator[Path]:
    """A name for the backend's socket in a fresh 0700 directory, which goes with the block."""
    if runtime_dir is not None:
        _sweep(runtime_dir)
    directory = Path(tempfile.mkdtemp(prefix=_DIRECTORY_PREFIX, dir=runtime_dir))
    if len(os.fsencode(directory / _SOCKET_NAME)) > MAX_SOCKET_PATH:
        directory.rmdir()
        directory = Path(tempfile.mkdtemp(prefix="islet-registry-", dir="/tmp"))
    try:
        yield directory / _SOCKET_NAME
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _sweep(runtime_dir: Path) -> None:
    """Remove what killed registries left: sockets that nobody listens on."""
    for directory in runtime_dir.glob(f"{_DIRECTORY_PREFIX}*"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(directory / _SOCKET_NAME))
            except ConnectionRefusedError:
                shutil.rmtree(directory, ignore_errors=True)
            except OSError:
                continue


def _listen(
    options: ServeOptions, backend: Path, root: Path, access: AccessLog, admission: Admission | None
) -> _native.ratls.Server:
    certificate = key = None
    if options.tls != "none":
        if options.certificate is None or options.key is None:
            raise InputError(
                f"mode {options.tls} needs a server certificate and its key",
                code="tls_config",
                hint="pass --cert FILE and --key FILE, or serve from a workspace",
            )
        certificate, key = read_file(options.certificate, limit=1 << 20), read_file(options.key, limit=1 << 20)
    try:
        return _native.ratls.Server(
            options.listen,
            options.tls,
            backend=os.fspath(backend),
            store=os.fspath(root),
            record=access.record,
            certificate=certificate,
            key=key,
            appraise=admission.appraise if admission is not None else None,
        )
    except OSError as error:
        raise bind_error(options.listen, error) from error
