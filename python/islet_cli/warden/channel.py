"""The control channel of one realm: requests out, answers in, matched by order.

A request that times out leaves an answer outstanding; that answer is thrown away when it comes, so no
answer is ever taken for another request's. A manager that begins anew (its preamble, or a new
connection) ends every outstanding request.

Source: docs/protocols.md (realm protocol, behaviour of the two ends).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Iterator
from typing import Any

from islet_cli import framing
from islet_cli.warden import codec, messages, wire
from islet_cli.warden.errors import WardenError

log = logging.getLogger(__name__)
HELLO = object()


class RealmStream:
    """Cut a realm's byte stream into frame bodies and preambles.

    A manager that is killed in the middle of a frame leaves a broken one; its successor's preamble
    inside that frame is found, because JSON text never holds the preamble's zero byte.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yield `HELLO` or the body of each complete frame.

        Raises:
            FramingError: A length prefix above the limit.
        """
        self._buffer += data
        while len(self._buffer) >= framing.PREFIX.size:
            hello = messages.REALM_HELLO
            if self._buffer.startswith(hello[: len(self._buffer)]):
                if len(self._buffer) < len(hello):
                    return
                del self._buffer[: len(hello)]
                yield HELLO
                continue
            end = framing.PREFIX.size + framing.decode_length(bytes(self._buffer[: framing.PREFIX.size]))
            restart = self._buffer.find(hello, framing.PREFIX.size)
            if 0 <= restart < end:
                log.warning("dropping %d bytes of a broken frame", restart)
                del self._buffer[:restart]
                continue
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[framing.PREFIX.size : end])
            del self._buffer[:end]
            yield body


class RealmChannel:
    """One connection to a manager.

    Args:
        reader: The stream.
        writer: The stream.
        announced: The transport has no connections of its own, so the manager counts as connected
            only after its preamble.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, announced: bool) -> None:
        self._reader, self._writer = reader, writer
        self._answers: deque[asyncio.Future[Any]] = deque()
        self._turn = asyncio.Lock()
        self.connected = asyncio.Event()
        self.closed = asyncio.Event()
        self.resets = 0
        """How often a manager began anew after the first time."""
        self.reset = asyncio.Event()
        if not announced:
            self.connected.set()
        self._task = asyncio.create_task(self._receive())

    async def request(self, value: Any, timeout_s: float) -> tuple[str, Any]:
        """Send one request and return the answer's name and content.

        Raises:
            WardenError: `realm-timeout`, `realm-gone`, `protocol`, or `realm-error` with the manager's text.
        """
        name, content = await self._exchange(value, timeout_s)
        if name == "Error":
            kind, text = codec.split(content)
            raise RealmRefusedError(kind, text or kind)
        return name, content

    async def _exchange(self, value: Any, timeout_s: float) -> tuple[str, Any]:
        async with self._turn:
            if self.closed.is_set() or not self.connected.is_set():
                raise gone()
            answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self._answers.append(answer)
            try:
                async with asyncio_timeout(timeout_s):
                    await wire.send(self._writer, messages.REALM_REQUEST, value)
                    return codec.split(await answer)
            except asyncio.TimeoutError:
                name = codec.split(value)[0]
                raise WardenError(
                    f"the realm did not answer {name} within {timeout_s:g} s", code="realm-timeout"
                ) from None
            except OSError as error:
                raise gone() from error

    async def send_only(self, value: Any) -> None:
        """Send a request whose answer is the end of the connection (Shutdown, Reboot)."""
        with contextlib.suppress(OSError):
            async with asyncio_timeout(2):
                await wire.send(self._writer, messages.REALM_REQUEST, value)

    async def _receive(self) -> None:
        stream = RealmStream()
        try:
            while data := await self._reader.read(1 << 16):
                for item in stream.feed(data):
                    self._take(item)
        except (OSError, framing.FramingError, codec.MessageError) as error:
            log.warning("closing the control channel: %s", error)
        finally:
            self.closed.set()
            self.connected.clear()
            self._fail_all()
            self._writer.close()

    def _take(self, item: Any) -> None:
        if item is HELLO:
            if self.connected.is_set():
                self.resets += 1
                self.reset.set()
            self._fail_all()
            self.connected.set()
            return
        answer = codec.decode(messages.REALM_RESPONSE, item)
        if not self._answers:
            log.warning("dropping an answer to no request: %s", codec.split(answer)[0])
            return
        waiting = self._answers.popleft()
        if waiting.done():
            log.info("dropping a late answer: %s", codec.split(answer)[0])
        else:
            waiting.set_result(answer)

    def _fail_all(self) -> None:
        while self._answers:
            waiting = self._answers.popleft()
            if not waiting.done():
                waiting.set_exception(gone())

    async def close(self) -> None:
        """End the connection."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


class RealmRefusedError(WardenError):
    """The manager answered with an error; `kind` is its name in the protocol."""

    def __init__(self, kind: str, text: str) -> None:
        code = "data-at-risk" if text.startswith("data-at-risk:") else "realm-error"
        text = text.removeprefix("data-at-risk:").strip() if code == "data-at-risk" else f"{kind}: {text}"
        super().__init__(text, code=code)
        self.kind = kind


def gone() -> WardenError:
    """The error for a manager that is not connected."""
    return WardenError("the realm's app manager is not connected", code="realm-gone")


@contextlib.asynccontextmanager
async def asyncio_timeout(seconds: float) -> Any:
    """`asyncio.timeout`, which Python 3.10 does not have."""
    task = asyncio.current_task()
    assert task is not None
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        task.cancel()

    handle = asyncio.get_running_loop().call_later(seconds, expire)
    try:
        yield
    except asyncio.CancelledError:
        if expired:
            raise asyncio.TimeoutError from None
        raise
    finally:
        handle.cancel()
