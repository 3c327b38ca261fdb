"""The Realm Services Interface: the monitor behind one small interface.

`DeviceRsi` uses `/dev/rsi` of a real realm, `ChannelRsi` the virtio-serial port of the emulated platform. Which one
is used is decided by the measured configuration alone: a manager set to the device never opens the channel.

Source: RMM specification, "Realm Services Interface"; linux-rsi (ioctl numbers and structures); docs/protocols.md
(channel).
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from islet_cli import framing, strictjson
from islet_cli.appmanager.ports import find_port
from islet_cli.errors import InputError, OperationError, UnavailableError

PORT_NAME = "islet.rsi.0"
DEVICE = Path("/dev/rsi")
HELLO = b"ISLET-RSI-OPEN\n\0"

CHALLENGE_SIZE = 64
SEALING_KEY_SIZE = 32
METADATA_PAGE_SIZE = 4096
MEASUREMENT_SIZE = 64
MAX_EXTENSION = 64

_FRAME_LIMIT = 65536
_REQUEST_LIMIT = 4096
_HANDSHAKE_S = 10.0
_BUSY_S = 5.0


class RsiError(OperationError):
    """The monitor refused or is away. `errno` is what the driver (or the channel) gave."""

    default_code = "rsi"

    def __init__(self, call: str, number: int, text: str = "") -> None:
        name = errno.errorcode.get(number, str(number))
        super().__init__(f"RSI {call}: {name}{': ' + text if text else ''}", code="rsi", errno=name)
        self.errno = number


class Rsi(Protocol):
    """The calls of the monitor; each raises `RsiError`."""

    def version(self) -> int: ...

    def measurement_read(self, index: int) -> bytes: ...

    def measurement_extend(self, index: int, data: bytes) -> None: ...

    def attestation_token(self, challenge: bytes) -> bytes: ...

    def sealing_key(self, flags: int, svn: int) -> bytearray: ...

    def realm_metadata(self) -> bytes: ...


def open_rsi(kind: str) -> Rsi:
    """The implementation that the configuration names (`device` or `virtio-serial`).

    Raises:
        UnavailableError: The device or port is not there.
    """
    if kind == "device":
        if not DEVICE.exists():
            raise UnavailableError(
                f"{DEVICE}: not there", code="no-rsi", hint="this image runs only where the monitor offers RSI"
            )
        return DeviceRsi(DEVICE)
    return ChannelRsi.open(find_port(PORT_NAME))


# ---------------------------------------------------------------------------------------------------------
# The device

_VERSION = 0x800878BE
_MEASUREMENT_READ = 0xC04878C0
_MEASUREMENT_EXTEND = 0x404878C1
_ATTESTATION_TOKEN = 0xC05078C2
_SEALING_KEY = 0xC03078C8
_REALM_METADATA = 0x900078C9

_MEASUREMENT = struct.Struct("=II64s")
_TOKEN = struct.Struct("=64sQQ")
_SEALING = struct.Struct("=QQ32s")


class DeviceRsi:
    """The Linux driver. It lets one process in at a time, so each call opens the device anew."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _call(self, name: str, request: int, buffer: bytearray) -> None:
        deadline = time.monotonic() + _BUSY_S
        while True:
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.ioctl(descriptor, request, buffer, True)
                    return
                finally:
                    os.close(descriptor)
            except OSError as error:
                number = error.errno or errno.EIO
                if number != errno.EBUSY or time.monotonic() > deadline:
                    raise RsiError(name, number) from error
            time.sleep(0.02)

    def version(self) -> int:
        buffer = bytearray(8)
        self._call("version", _VERSION, buffer)
        return int.from_bytes(buffer, "little")

    def measurement_read(self, index: int) -> bytes:
        buffer = bytearray(_MEASUREMENT.pack(index, 0, b""))
        self._call("measurement read", _MEASUREMENT_READ, buffer)
        return _MEASUREMENT.unpack(buffer)[2]  # type: ignore[no-any-return]

    def measurement_extend(self, index: int, data: bytes) -> None:
        _check_extension(index, data)
        self._call(
            "measurement extend", _MEASUREMENT_EXTEND, bytearray(_MEASUREMENT.pack(index, len(data), bytes(data)))
        )

    def attestation_token(self, challenge: bytes) -> bytes:
        import ctypes

        _check_challenge(challenge)
        size = 4096
        while True:
            token = ctypes.create_string_buffer(size)
            buffer = bytearray(_TOKEN.pack(challenge, size, ctypes.addressof(token)))
            try:
                self._call("attestation token", _ATTESTATION_TOKEN, buffer)
            except RsiError as error:
                needed = _TOKEN.unpack(buffer)[1]
                if error.errno != errno.ERANGE or not size < needed <= _FRAME_LIMIT:
                    raise
                size = needed
                continue
            return token.raw[: min(size, _TOKEN.unpack(buffer)[1])]

    def sealing_key(self, flags: int, svn: int) -> bytearray:
        buffer = bytearray(_SEALING.pack(flags, svn, b""))
        self._call("sealing key", _SEALING_KEY, buffer)
        key = buffer[16:]
        buffer[:] = bytes(len(buffer))
        return key

    def realm_metadata(self) -> bytes:
        buffer = bytearray(METADATA_PAGE_SIZE)
        self._call("realm metadata", _REALM_METADATA, buffer)
        return bytes(buffer)


# ---------------------------------------------------------------------------------------------------------
# The channel of the emulated platform


class ChannelRsi:
    """Frames over a port; one request is outstanding at a time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> ChannelRsi:
        """Open the port and synchronise: say hello, discard everything before its echo.

        Raises:
            UnavailableError: The port cannot be opened, or the platform does not answer.
        """
        try:
            path.chmod(0o600)
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise UnavailableError(f"{path}: {error.strerror}", code="no-rsi") from error
        return cls.over(descriptor)

    @classmethod
    def over(cls, descriptor: int) -> ChannelRsi:
        """Like `open`, over a descriptor that is already there."""
        channel = cls(descriptor)
        try:
            channel._synchronise()
        except BaseException:
            os.close(descriptor)
            raise
        return channel

    def _synchronise(self) -> None:
        os.write(self._descriptor, HELLO)
        deadline = time.monotonic() + _HANDSHAKE_S
        window = b""
        while not window.endswith(HELLO):
            if time.monotonic() > deadline:
                raise UnavailableError("the emulated platform does not answer", code="no-rsi")
            # One byte at a time: nothing after the echo may be swallowed.
            window = (window + self._receive(1))[-len(HELLO) :]

    def _receive(self, count: int) -> bytes:
        if not select.select([self._descriptor], [], [], 60.0)[0]:
            raise RsiError("channel", errno.ETIMEDOUT)
        try:
            data = os.read(self._descriptor, count)
        except OSError as error:
            raise RsiError("channel", error.errno or errno.EIO) from error
        if not data:
            raise RsiError("channel", errno.ENXIO, "the emulated platform is away")
        return data

    def _ask(self, call: str, request: Any, answer: str) -> Any:
        body = strictjson.dumps(request)
        frame = framing.PREFIX.pack(len(body)) + body
        if len(frame) > _REQUEST_LIMIT:
            raise RsiError(call, errno.EINVAL, "request too large")
        with self._lock:
            try:
                # One write, so that a killed manager leaves no partial request.
                if os.write(self._descriptor, frame) != len(frame):
                    raise RsiError(call, errno.EIO, "short write")
                value = framing.read_frame(self._receive, limit=_FRAME_LIMIT)
            except OSError as error:
                raise RsiError(call, error.errno or errno.EIO) from error
            except InputError as error:
                raise RsiError(call, errno.EPROTO, error.message) from error
        if value == answer:
            return None
        if isinstance(value, dict) and len(value) == 1:
            if answer in value:
                return value[answer]
            refusal = value.get("Error")
            if isinstance(refusal, dict) and isinstance(refusal.get("errno"), (int, str)):
                raise RsiError(call, _number(refusal["errno"]), str(refusal.get("message", ""))[:200])
        raise RsiError(call, errno.EPROTO, "unexpected answer")

    def version(self) -> int:
        value = self._ask("version", "Version", "Version")
        if type(value) is not int:
            raise RsiError("version", errno.EPROTO)
        return value

    def measurement_read(self, index: int) -> bytes:
        value = self._ask("measurement read", {"MeasurementRead": {"index": index}}, "Measurement")
        return _octets("measurement read", value, MEASUREMENT_SIZE)

    def measurement_extend(self, index: int, data: bytes) -> None:
        _check_extension(index, data)
        self._ask("measurement extend", {"MeasurementExtend": {"index": index, "data": list(data)}}, "Ok")

    def attestation_token(self, challenge: bytes) -> bytes:
        _check_challenge(challenge)
        request = {"AttestationToken": {"challenge": list(challenge)}}
        return _octets("attestation token", self._ask("attestation token", request, "AttestationToken"))

    def sealing_key(self, flags: int, svn: int) -> bytearray:
        value = self._ask("sealing key", {"SealingKey": {"flags": flags, "svn": svn}}, "SealingKey")
        return bytearray(_octets("sealing key", value, SEALING_KEY_SIZE))

    def realm_metadata(self) -> bytes:
        return _octets(
            "realm metadata", self._ask("realm metadata", "RealmMetadata", "RealmMetadata"), METADATA_PAGE_SIZE
        )


def _number(value: int | str) -> int:
    """An error number, given as the number or as its symbolic name."""
    if isinstance(value, str):
        found = getattr(errno, value, None)
        return found if isinstance(found, int) else errno.EIO
    return value


def _octets(call: str, value: object, size: int | None = None) -> bytes:
    if not isinstance(value, list) or not all(type(one) is int and 0 <= one <= 255 for one in value):
        raise RsiError(call, errno.EPROTO, "not bytes")
    if size is not None and len(value) != size:
        raise RsiError(call, errno.EPROTO, f"{len(value)} bytes instead of {size}")
    return bytes(value)


def _check_extension(index: int, data: bytes) -> None:
    if not 1 <= index <= 4:
        raise RsiError("measurement extend", errno.EFAULT, "index is not 1 to 4")
    if not 1 <= len(data) <= MAX_EXTENSION:
        raise RsiError("measurement extend", errno.EINVAL, "1 to 64 bytes")


def _check_challenge(challenge: bytes) -> None:
    if len(challenge) != CHALLENGE_SIZE:
        raise RsiError("attestation token", errno.EINVAL, "the challenge is not 64 bytes")
