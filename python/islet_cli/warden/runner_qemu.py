"""Realms as QEMU processes.

QEMU inherits the measured kernel and initramfs, and one end each of two socket pairs: the control
channel and the monitor (QMP). Nobody else can connect to either. The process dies with the warden.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
from collections import deque
from pathlib import Path
from typing import Protocol

from qemu.qmp import QMPClient
from qemu.qmp.error import QMPError

from islet_cli.errors import InputError, IsletError, UnavailableError
from islet_cli.process import die_with_parent, start_time
from islet_cli.warden import accel, qemu_arguments
from islet_cli.warden.channel import asyncio_timeout
from islet_cli.warden.console import Console
from islet_cli.warden.errors import WardenError
from islet_cli.warden.runner import LaunchRequest, Vm, VmFailedError

MONITOR_TIMEOUT_S = 10.0
_REAP_TIMEOUT_S = 5.0
_VM_LOG_BYTES = 1 << 20
log = logging.getLogger(__name__)


class Listener(Protocol):
    """Hands out connections of realms by vsock context id."""

    async def accept(self, cid: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]: ...


class QemuRunner:
    """Starts realms under QEMU.

    Args:
        accel_setting: `auto`, `kvm` or `tcg`; `ISLET_ACCEL` takes the place of `auto`.
        vsock: Where realms connect when the transport is vsock; None for virtio-serial.
        binary: QEMU to use instead of the one in PATH.
    """

    def __init__(
        self, accel_setting: str = "auto", *, vsock: Listener | None = None, binary: Path | None = None
    ) -> None:
        self._setting = accel_setting
        self._vsock = vsock
        self._binary = binary
        self._accel: str | None = None
        self.announced = vsock is None

    async def accelerator(self, machine: qemu_arguments.Machine) -> str:
        """The accelerator for `machine`, probed once."""
        if not qemu_arguments.is_native(machine):
            if accel.requested(self._setting) == "kvm":
                raise UnavailableError(f"this host cannot run {machine.arch} under KVM", code="unavailable")
            return "tcg"
        if self._accel is None:
            self._accel = await asyncio.to_thread(accel.choose, self._setting)
        return self._accel

    def fall_back(self) -> bool:
        """From KVM, when `auto` chose it, to tcg."""
        if self._accel != "kvm" or accel.requested(self._setting) != "auto":
            return False
        log.warning("KVM brings no guest up here; using tcg from now on")
        self._accel = "tcg"
        return True

    async def launch(self, request: LaunchRequest) -> Vm:
        machine = qemu_arguments.machine_of(request.activation.kernel_fd)
        binary = self._find(machine)
        return await self._start(request, machine, binary, await self.accelerator(machine))

    def _find(self, machine: qemu_arguments.Machine) -> Path:
        found = str(self._binary) if self._binary else shutil.which(machine.binary)
        if found is None or not os.access(found, os.X_OK):
            raise qemu_arguments.missing(machine)
        return Path(found)

    async def _start(
        self, request: LaunchRequest, machine: qemu_arguments.Machine, binary: Path, chosen: str
    ) -> QemuVm:
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            qmp, qmp_end = _pair(ours, theirs)
            control, control_end = _pair(ours, theirs) if self._vsock is None else (None, None)
            arguments = qemu_arguments.arguments(
                request,
                machine,
                chosen,
                control=control_end.fileno() if control_end else None,
                qmp=qmp_end.fileno(),
            )
            activation = request.activation
            inherited = [activation.kernel_fd, activation.initramfs_fd, qmp_end.fileno()]
            inherited += [control_end.fileno()] if control_end else []
            log.debug("realm %s: %s %s", request.realm, binary, arguments)
            process = await _spawn(binary, arguments, inherited)
            vm = QemuVm(process, request, chosen, control, self._vsock)
            ours.pop_all()
        try:
            await vm.attach(qmp)
        except BaseException:
            vm.kill()
            raise
        return vm


def _pair(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    """A socket pair: our end, closed on failure, and QEMU's end, closed in this process in any case."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.callback(near.close)
    theirs.callback(far.close)
    near.setblocking(False)
    return near, far


async def _spawn(binary: Path, arguments: list[str], inherited: list[int]) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            binary,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=inherited,
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )
    except OSError as error:
        raise UnavailableError(f"{binary}: {error.strerror}", code="unavailable") from error


class QemuVm:
    """One QEMU process."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        request: LaunchRequest,
        chosen: str,
        control: socket.socket | None,
        vsock: Listener | None,
    ) -> None:
        self.pid = process.pid
        self.started = start_time(process.pid) or 0
        self.accel = chosen
        self.console = Console(request.console_log)
        self.exit_status: int | None = None
        self._request = request
        self._process = process
        self._control, self._vsock = control, vsock
        self._diagnostics: deque[str] = deque(maxlen=20)
        self._reason: str | None = None
        self._monitor = QMPClient(f"realm-{request.realm}")
        self._attached = False
        self._tasks = [asyncio.create_task(self._pump_console()), asyncio.create_task(self._pump_log())]
        self._ended = asyncio.create_task(self._reap())

    async def attach(self, qmp: socket.socket) -> None:
        """Connect to the monitor; on failure the process is ended first.

        Raises:
            WardenError: `launch-failed`, with QEMU's own words.
        """
        try:
            async with asyncio_timeout(MONITOR_TIMEOUT_S):
                await self._monitor.connect(qmp)
        except (QMPError, EOFError, OSError, asyncio.TimeoutError) as error:
            qmp.close()
            silent = isinstance(error, asyncio.TimeoutError)
            with contextlib.suppress(asyncio.TimeoutError):
                async with asyncio_timeout(0.5):
                    await asyncio.shield(self._ended)
            self.kill()
            with contextlib.suppress(asyncio.TimeoutError):
                async with asyncio_timeout(_REAP_TIMEOUT_S):
                    await asyncio.shield(self._ended)
            raise self._launch_error(silent) from error
        self._attached = True
        self._tasks.append(asyncio.create_task(self._watch_events()))

    def _launch_error(self, silent: bool) -> IsletError:
        if silent:
            return VmFailedError(f"QEMU did not answer within {MONITOR_TIMEOUT_S:g} s")
        words = self._last_words()
        if "forwarding rule" in words:
            return UnavailableError(f"a port cannot be published: {words}", code="network", hint="publish another port")
        if "ould not access KVM" in words or "failed to initialize kvm" in words:
            return VmFailedError(f"KVM does not work here: {words}", code="unavailable", hint="use --accel tcg")
        if "annot allocate memory" in words or "annot set up guest memory" in words:
            return WardenError(f"not enough memory: {words}", code="launch-failed", hint="give the realm less memory")
        return VmFailedError(f"QEMU ended at once: {words or self.describe_exit()}")

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        control, self._control = self._control, None
        if control is not None:
            return await asyncio.open_connection(sock=control)
        if self._vsock is None or self._request.vsock_cid is None:
            raise InputError("the realm has no vsock context id", code="bad-config")
        return await self._vsock.accept(self._request.vsock_cid)

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def terminate(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def describe_exit(self) -> str:
        status = self.exit_status
        how = f"was killed by signal {-status}" if status is not None and status < 0 else f"ended with status {status}"
        parts = [f"the VM {how}", f"reason {self._reason}" if self._reason else "", self._last_words()]
        tail = self.console.tail()
        parts.append(f"console: {tail}" if tail else "")
        return "; ".join(part for part in parts if part)

    def _last_words(self) -> str:
        return " | ".join(list(self._diagnostics)[-3:])

    async def _reap(self) -> int:
        self.exit_status = await self._process.wait()
        await asyncio.gather(*self._tasks[:2], return_exceptions=True)
        for task in self._tasks[2:]:
            task.cancel()
        if self._attached:
            with contextlib.suppress(QMPError, EOFError, OSError):
                await self._monitor.disconnect()
        if self._control is not None:
            self._control.close()
        self.console.close()
        return self.exit_status

    async def _pump_console(self) -> None:
        assert self._process.stdout is not None
        while data := await self._process.stdout.read(1 << 16):
            self.console.feed(data)

    async def _pump_log(self) -> None:
        """QEMU's own messages: into `vm.log`, bounded, and the last ones into errors."""
        assert self._process.stderr is not None
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        written = 0
        with os.fdopen(os.open(self._request.vm_log, flags, 0o600), "wb", buffering=0) as file:
            while data := await self._process.stderr.read(1 << 12):
                for line in data.decode("utf-8", "replace").splitlines():
                    self._diagnostics.append(line.strip())
                    log.info("realm %s: %s", self._request.realm, line)
                if written + len(data) <= _VM_LOG_BYTES:
                    written += file.write(data)

    async def _watch_events(self) -> None:
        with self._monitor.listener() as events:
            async for event in events:
                log.debug("realm %s: %s", self._request.realm, event)
                if event["event"] == "SHUTDOWN":
                    data = event.get("data")
                    self._reason = str(data.get("reason")) if isinstance(data, dict) else None
