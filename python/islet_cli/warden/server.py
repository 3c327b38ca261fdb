"""The client protocol's server side: one task per connection, commands of one connection in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from islet_cli.errors import IsletError
from islet_cli.framing import FramingError
from islet_cli.warden import codec, wire
from islet_cli.warden.errors import WardenError, to_wire
from islet_cli.warden.messages import WARDEN_COMMAND, WARDEN_RESPONSE
from islet_cli.warden.warden import Warden

_CHUNK = 256 << 10
_UCRED = struct.Struct("3i")
Handler = Callable[[Warden, Any], Awaitable[Any]]
Stream = Callable[[Warden, Any], AsyncIterator[bytes]]
log = logging.getLogger(__name__)


def _ok(call: Callable[[Warden, Any], Awaitable[None]]) -> Handler:
    async def handler(warden: Warden, content: Any) -> Any:
        await call(warden, content)
        return "Ok"

    return handler


async def _create_realm(warden: Warden, content: Any) -> Any:
    return {"CreatedRealm": {"uuid": str(await warden.create_realm(content["config"]))}}


async def _create_realm_launch(warden: Warden, content: Any) -> Any:
    return {"CreatedRealm": {"uuid": str(await warden.create_realm_launch(content))}}


async def _create_application(warden: Warden, content: Any) -> Any:
    return {
        "CreatedApplication": {"uuid": str(await warden.create_application(content["realm_uuid"], content["config"]))}
    }


async def _fetch_token(warden: Warden, content: Any) -> Any:
    token = await warden.realm(content["uuid"]).fetch_token(bytes(content["challenge"]))
    return {"AttestationToken": {"token": list(token)}}


async def _inspect(warden: Warden, content: Any) -> Any:
    return {"InspectedRealm": {"description": await warden.inspect(content["uuid"])}}


async def _list(warden: Warden, _content: Any) -> Any:
    return {"ListedRealms": {"realms_description": await warden.list_realms()}}


async def _describe(warden: Warden, _content: Any) -> Any:
    return {"DescribedRealms": {"realms": await warden.describe()}}


async def _describe_launch(warden: Warden, content: Any) -> Any:
    return {"DescribedLaunch": warden.describe_launch(content["uuid"])}


async def _inspect_application(warden: Warden, content: Any) -> Any:
    return {"InspectedApplication": {"description": await warden.inspect_application(**content)}}


HANDLERS: dict[str, Handler] = {
    "CreateRealm": _create_realm,
    "CreateRealmLaunch": _create_realm_launch,
    "UpdateRealm": _ok(lambda warden, content: warden.update_realm(content)),
    "StartRealm": _ok(lambda warden, content: warden.realm(content["uuid"]).start()),
    "StopRealm": _ok(lambda warden, content: warden.realm(content["uuid"]).stop()),
    "RebootRealm": _ok(lambda warden, content: warden.realm(content["uuid"]).reboot()),
    "DestroyRealm": _ok(lambda warden, content: warden.destroy(content["uuid"])),
    "InspectRealm": _inspect,
    "ListRealms": _list,
    "DescribeRealms": _describe,
    "DescribeLaunch": _describe_launch,
    "FetchToken": _fetch_token,
    "CreateApplication": _create_application,
    "UpdateApplication": _ok(lambda warden, content: warden.update_application(**content)),
    "RemoveApplication": _ok(lambda warden, content: warden.remove_application(**content)),
    "InspectApplication": _inspect_application,
    "StartApplication": _ok(lambda warden, content: warden.start_application(**content)),
    "StopApplication": _ok(lambda warden, content: warden.stop_application(**content)),
    "KillApplication": _ok(lambda warden, content: warden.kill_application(**content)),
    "ConfirmReformat": _ok(lambda warden, content: warden.confirm_reformat(**content)),
}

STREAMS: dict[str, Stream] = {
    "ApplicationLogs": lambda warden, content: warden.logs(**content),
    "RealmConsole": lambda warden, content: warden.console(content["uuid"], content["follow"]),
}


class ClientServer:
    """Serves clients until told to stop; running commands then get an error answer."""

    def __init__(self, warden: Warden) -> None:
        self._warden = warden
        self.stopping = asyncio.Event()
        self._clients: set[asyncio.Task[None]] = set()
        self._commands: set[asyncio.Future[Any]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            if peer_allowed(writer.get_extra_info("socket")):
                await _Connection(self, self._warden, reader, writer).run()
            else:
                log.warning("refusing a client of another user")
        except (OSError, FramingError, asyncio.CancelledError) as error:
            log.debug("client connection ended: %s", error)
        finally:
            self._clients.discard(task)
            writer.close()

    async def stop(self) -> None:
        """Answer running commands with an error and end the connections."""
        self.stopping.set()
        if self._clients:
            await asyncio.wait(self._clients, timeout=2)
        for task in self._clients:
            task.cancel()

    async def or_stopping(self, work: Awaitable[Any]) -> Any:
        """Await `work`; when the warden is told to stop meanwhile, leave it running and raise.

        Raises:
            WardenError: `bad-state`: the warden is stopping.
        """
        task = asyncio.ensure_future(work)
        self._commands.add(task)
        task.add_done_callback(self._done)
        stopping = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        if not task.done():
            raise WardenError("the warden is stopping", code="bad-state")
        return task.result()

    def _done(self, task: asyncio.Future[Any]) -> None:
        """A command whose client has gone still has its outcome looked at."""
        self._commands.discard(task)
        if not task.cancelled():
            task.exception()


class _Connection:
    """One client. The next frame is read ahead while a stream is sent, to notice that the client left."""

    def __init__(
        self, server: ClientServer, warden: Warden, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._server, self._warden, self._reader, self._writer = server, warden, reader, writer
        self._ahead: asyncio.Task[bytes | None] | None = None

    async def run(self) -> None:
        try:
            while (body := await self._server.or_stopping(self._next())) is not None:
                try:
                    name, content = codec.split(codec.decode(WARDEN_COMMAND, body))
                except codec.MessageError as error:
                    log.warning("unreadable request: %s", error.message)
                    await self._send({"Error": {"warden_error": "ReadingRequestFail"}})
                    return
                await self._answer(name, content)
        except WardenError:
            return
        except FramingError as error:
            log.warning("unreadable request: %s", error.message)
            with contextlib.suppress(OSError):
                await self._send({"Error": {"warden_error": "ReadingRequestFail"}})
        finally:
            if self._ahead is not None:
                self._ahead.cancel()

    async def _next(self) -> bytes | None:
        if self._ahead is None:
            self._ahead = asyncio.create_task(wire.read_body(self._reader))
        body = await asyncio.shield(self._ahead)
        self._ahead = None
        return body

    async def _answer(self, name: str, content: Any) -> None:
        try:
            if name in STREAMS:
                if not await self._stream(STREAMS[name](self._warden, content)):
                    return
                answer: Any = "Ok"
            else:
                answer = await self._server.or_stopping(HANDLERS[name](self._warden, content))
        except IsletError as error:
            log.info("%s: %s: %s", name, error.code, error.message)
            answer = {"Error": {"warden_error": {"WardenDaemonFail": {"message": to_wire(error)}}}}
        except Exception as error:
            log.exception("%s failed", name)
            message = f"internal: {type(error).__name__}: {error}"
            answer = {"Error": {"warden_error": {"WardenDaemonFail": {"message": message}}}}
        await self._send(answer)

    async def _stream(self, chunks: AsyncIterator[bytes]) -> bool:
        """Send chunks until they end; return false when the client or the warden left first."""
        if self._ahead is None:
            self._ahead = asyncio.create_task(wire.read_body(self._reader))
        sending = asyncio.create_task(self._send_chunks(chunks))
        stopping = asyncio.create_task(self._server.stopping.wait())
        try:
            await asyncio.wait({sending, self._ahead, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if self._client_stays() and not stopping.done():
                await asyncio.wait({sending, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
                return True
            return False
        finally:
            sending.cancel()
            stopping.cancel()
            await asyncio.gather(sending, stopping, return_exceptions=True)

    def _client_stays(self) -> bool:
        """Whether what was read ahead is another command (or nothing yet), not the end of the connection."""
        ahead = self._ahead
        return ahead is None or not ahead.done() or (ahead.exception() is None and ahead.result() is not None)

    async def _send_chunks(self, chunks: AsyncIterator[bytes]) -> None:
        async for data in chunks:
            for start in range(0, len(data), _CHUNK):
                await self._send({"LogChunk": {"data": list(data[start : start + _CHUNK])}})

    async def _send(self, answer: Any) -> None:
        await wire.send(self._writer, WARDEN_RESPONSE, answer)


def peer_allowed(connection: socket.socket) -> bool:
    """Whether the peer of a Unix socket is this user or root."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _pid, uid, _gid = _UCRED.unpack(data)
    return uid in (os.geteuid(), 0)
