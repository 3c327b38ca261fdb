"""The vsock listener: realms connect to the host and are told apart by their context id.

Source: Linux vsock(7).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from pathlib import Path

from islet_cli.errors import UnavailableError
from islet_cli.warden.errors import WardenError

DEFAULT_PORT = 1337
_CID_ANY = 0xFFFFFFFF
log = logging.getLogger(__name__)


class VsockListener:
    """Accepts realms. A connection that nobody waits for is logged and closed."""

    def __init__(self, port: int = DEFAULT_PORT) -> None:
        self._port = port
        self._waiting: dict[int, asyncio.Future[socket.socket]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen on the port for any context id.

        Raises:
            UnavailableError: The host has no vsock, or the port is taken.
        """
        if not Path("/dev/vhost-vsock").exists():
            raise UnavailableError(
                "/dev/vhost-vsock is missing: this host cannot give realms a vsock",
                code="unavailable",
                hint="run: modprobe vhost_vsock, or use --transport virtio-serial",
            )
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        try:
            listener.bind((_CID_ANY, self._port))
            listener.listen(16)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise UnavailableError(
                f"cannot listen on vsock port {self._port}: {error.strerror}", code="unavailable", hint="use --port"
            ) from error
        self._task = asyncio.create_task(self.serve(listener))

    async def serve(self, listener: socket.socket) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                try:
                    connection, peer = await loop.sock_accept(listener)
                except OSError as error:
                    log.warning("accepting a realm: %s", error)
                    await asyncio.sleep(0.1)
                    continue
                self.take(connection, peer[0])

    def take(self, connection: socket.socket, cid: int) -> None:
        """Give a connection to whoever waits for its context id."""
        waiting = self._waiting.pop(cid, None)
        if waiting is None or waiting.done():
            log.warning("closing a connection from context id %d that nobody waits for", cid)
            connection.close()
            return
        waiting.set_result(connection)

    async def accept(self, cid: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Wait for the realm with context id `cid`."""
        if cid in self._waiting:
            raise WardenError(f"context id {cid} is in use", code="resource-taken")
        waiting = self._waiting[cid] = asyncio.get_running_loop().create_future()
        try:
            connection = await waiting
        finally:
            self._waiting.pop(cid, None)
        connection.setblocking(False)
        return await asyncio.open_connection(sock=connection)

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
