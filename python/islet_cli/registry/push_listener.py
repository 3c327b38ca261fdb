"""The second listener, the only way to push and to delete: a Unix socket for its owner, or TCP with a credential.

It shares nothing with the pull listener but the store and what is known about its files.

Source: docs/registry.md, "Pushing".
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from starlette.concurrency import run_in_threadpool

from islet_cli import _native
from islet_cli.errors import InputError, UnavailableError
from islet_cli.fsutil import read_file
from islet_cli.registry.app import RegistryApp
from islet_cli.registry.backend import MAX_SOCKET_PATH, backend, bind_error
from islet_cli.registry.catalogue import Catalogue
from islet_cli.registry.credentials import Htpasswd
from islet_cli.registry.push import PushEndpoints
from islet_cli.registry.uploads import Uploads
from islet_cli.registry.writer import Writer

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

ANY_SOCKET = "socket"
_IDLE_S = 300.0
"""Without a byte: flushing a large blob to a slow disk takes a while."""
_CHUNK = 1 << 20

Record = Callable[[str, str, str, str], None]


@dataclass(frozen=True)
class PushOptions:
    """Where pushes are taken, and from whom.

    Attributes:
        listen: Path of a Unix socket, or `ADDR:PORT`; the word `socket` is one in the registry's private directory.
        tls: Needs `certificate` and `key`; without it a TCP listener stays on loopback.
        htpasswd: Who may push; needed on TCP, and only there.
    """

    listen: str
    tls: Literal["none", "tls"] = "none"
    certificate: Path | None = None
    key: Path | None = None
    htpasswd: Path | None = None

    @property
    def is_socket(self) -> bool:
        """Whether this is a Unix socket."""
        return "/" in self.listen or ":" not in self.listen


@contextlib.contextmanager
def push_listener(options: PushOptions, catalogue: Catalogue, private: Path, record: Record) -> Iterator[str]:
    """Take pushes for the length of the block; gives the socket's path or the bound `HOST:PORT`.

    Args:
        options: See `PushOptions`.
        catalogue: The store, as the pull listener serves it.
        private: A 0700 directory for the backend's socket.
        record: Told about clients that the TLS layer refused.

    Raises:
        InputError: The options contradict each other or a file is not usable.
        UnavailableError: `port-busy`, `socket-busy`.
    """
    check(options)
    guard = Htpasswd(options.htpasswd) if options.htpasswd is not None else None
    uploads = Uploads(catalogue.root)
    app = RegistryApp(catalogue, writing=PushEndpoints(Writer(catalogue), uploads), guard=guard)
    with contextlib.ExitStack() as stack:
        stack.callback(uploads.close)
        if options.is_socket:
            path = private / "push.sock" if options.listen == ANY_SOCKET else Path(options.listen).absolute()
            _make_way(path)
            yield str(stack.enter_context(backend(SendsFiles(app), path)))
            return
        socket_path = stack.enter_context(backend(app, private / "push-tcp.sock"))
        listener = _listen(options, socket_path, catalogue.root, record)
        stack.callback(listener.stop)
        yield listener.address


def check(options: PushOptions) -> None:
    """Refuse what would let strangers push or show a password to them.

    Raises:
        InputError: `push_config`.
    """

    def refuse(problem: str, hint: str) -> InputError:
        return InputError(f"push listener {options.listen}: {problem}", code="push_config", hint=hint)

    if options.is_socket:
        if options.htpasswd is not None or options.tls != "none":
            raise refuse("a socket takes neither TLS nor passwords", "its mode 0600 decides who may push")
        if options.listen != ANY_SOCKET and len(os.fsencode(Path(options.listen).absolute())) > MAX_SOCKET_PATH:
            raise refuse("the path is too long for a socket", f"at most {MAX_SOCKET_PATH} bytes")
        return
    if options.htpasswd is None:
        raise refuse("TCP needs a credential", "pass --push-htpasswd FILE, or a socket's path")
    if options.tls == "tls" and (options.certificate is None or options.key is None):
        raise refuse("TLS needs a certificate and its key", "pass --cert FILE and --key FILE")
    if options.tls == "none" and not _is_loopback(options.listen):
        raise refuse("passwords would cross the network in the clear", "pass --push-tls tls")


def _is_loopback(listen: str) -> bool:
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # Names can be made to mean anything.
        return host == "localhost"


def _make_way(path: Path) -> None:
    """Remove a socket that nobody listens on any more."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise InputError(f"{path}: is there already and is no socket", code="exists")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}", code="permission") from error
    raise UnavailableError(f"{path}: another registry takes pushes there", code="socket-busy", hint="stop it first")


def _listen(options: PushOptions, socket_path: Path, root: Path, record: Record) -> _native.ratls.Server:
    certificate = key = None
    if options.tls == "tls":
        assert options.certificate is not None and options.key is not None
        certificate, key = read_file(options.certificate, limit=1 << 20), read_file(options.key, limit=1 << 20)
    try:
        return _native.ratls.Server(
            options.listen,
            options.tls,
            backend=os.fspath(socket_path),
            store=os.fspath(root),
            record=record,
            certificate=certificate,
            key=key,
            idle_timeout=_IDLE_S,
        )
    except OSError as error:
        raise bind_error(options.listen, error) from error


class SendsFiles:
    """Does on the Unix socket what the native listener does on TCP: sends the files that an answer names.

    Only the registry's own user reaches the socket, so the speed of this way matters little.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer back."""
        file: tuple[str, int, int] | None = None

        async def sending(message: Any) -> None:
            nonlocal file
            if message["type"] == "http.response.start":
                headers = {key: value for key, value in message["headers"] if key.startswith(b"x-islet-")}
                if headers:
                    path = headers[b"x-islet-sendfile"].decode("utf-8")
                    offset, length = (headers[b"x-islet-sendfile-" + name] for name in (b"offset", b"length"))
                    file = path, int(offset), int(length)
                    kept = [item for item in message["headers"] if item[0] not in (*headers, b"content-length")]
                    message = {**message, "headers": [*kept, (b"content-length", length)]}
                await send(message)
            elif file is None:
                await send(message)
            else:
                await _send_file(send, *file)

        await self._app(scope, receive, sending)


async def _send_file(send: Send, path: str, offset: int, length: int) -> None:
    file = await run_in_threadpool(os.open, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while length:
            data = await run_in_threadpool(os.pread, file, min(_CHUNK, length), offset)
            if not data:
                break
            offset, length = offset + len(data), length - len(data)
            await send({"type": "http.response.body", "body": data, "more_body": True})
    finally:
        os.close(file)
    # A file that became shorter leaves the answer incomplete, which the server notices and hangs up on.
    await send({"type": "http.response.body", "body": b"", "more_body": False})
