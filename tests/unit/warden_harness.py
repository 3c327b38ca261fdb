"""A warden in a thread, with a runner whose VMs are managers that speak the realm protocol in memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from islet_cli.warden import codec, wire
from islet_cli.warden.client import WardenClient
from islet_cli.warden.console import Console
from islet_cli.warden.errors import WardenError
from islet_cli.warden.messages import REALM_HELLO, REALM_REQUEST, REALM_RESPONSE
from islet_cli.warden.options import Timeouts, WardenOptions
from islet_cli.warden.platform_session import Activation
from islet_cli.warden.runner import LaunchRequest
from islet_cli.warden.server import ClientServer
from islet_cli.warden.warden import Warden

FAST = Timeouts(connect=2.0, provision=2.0, response=0.5, stop=0.5, stop_application=0.5, query=0.3)
Answer = Callable[["FakeManager", Any], Any]


class FakeManager:
    """What a realm's app manager answers. `override` replaces the answer to a request by name.

    An override returns a response, or None for no answer at all, or "exit" to end the VM.
    """

    def __init__(self) -> None:
        self.override: dict[str, Answer] = {}
        self.requests: list[tuple[str, Any]] = []
        self.connects = True
        self.exit_at_launch: int | None = None
        self.ignores_shutdown = False
        self.provisioned: list[dict[str, str]] = []
        self.launches: list[LaunchRequest] = []
        self.log = b""

    def answer(self, name: str, content: Any) -> Any:
        self.requests.append((name, content))
        if name in self.override:
            return self.override[name](self, content)
        if name == "ProvisionInfo":
            self.provisioned = content
        if name in ("Shutdown", "Reboot"):
            return None if self.ignores_shutdown else "exit"
        if name == "ReadLog":
            start = content["offset"]
            data = self.log[start : start + content["limit"]]
            return {"LogData": {"offset": start, "next": start + len(data), "data": list(data)}}
        return {
            "GetAttestationToken": {"AttestationToken": [1, 2, 3]},
            "GetIfAddrs": {
                "IfAddrs": {"eth1": _interface("10.9.9.9"), "eth0": _interface("10.0.2.15")},
            },
            "CheckStatus": {"ApplicationIsRunning": []},
        }.get(name, {"Success": []})

    def names(self) -> list[str]:
        return [name for name, _ in self.requests]


def _interface(address: str) -> dict[str, Any]:
    return {"address": address, "netmask": None, "destination": None}


class FakeVm:
    """A VM process that is a task."""

    accel = "tcg"

    def __init__(self, request: LaunchRequest, manager: FakeManager) -> None:
        self.pid, self.started = 0, 0
        self.exit_status: int | None = None
        self.console = Console(request.console_log)
        self.manager = manager
        self._exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        near, far = socket.socketpair()
        self._near = near
        self._task = asyncio.create_task(self._serve(far))
        if manager.exit_at_launch is not None:
            self.console.feed(b"Kernel panic\r\n")
            self.exit(manager.exit_at_launch)

    async def _serve(self, far: socket.socket) -> None:
        reader, self.writer = await asyncio.open_connection(sock=far)
        if self.manager.connects:
            self.writer.write(REALM_HELLO)
        with contextlib.suppress(OSError):
            while (body := await wire.read_body(reader)) is not None:
                name, content = codec.split(codec.decode(REALM_REQUEST, body))
                answer = self.manager.answer(name, content)
                if asyncio.iscoroutine(answer):
                    answer = await answer
                if answer == "exit":
                    self.exit(0)
                elif answer is not None:
                    await wire.send(self.writer, REALM_RESPONSE, answer)

    def exit(self, status: int) -> None:
        if self.exit_status is None:
            self.exit_status = status
            self.console.close()
            self._task.cancel()
            self._near.close() if self._near.fileno() < 0 else None
            if hasattr(self, "writer"):
                self.writer.close()
            self._exited.set_result(status)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(sock=self._near)

    async def wait(self) -> int:
        return await asyncio.shield(self._exited)

    def terminate(self) -> None:
        self.exit(-15)

    def kill(self) -> None:
        self.exit(-9)

    def describe_exit(self) -> str:
        return f"the VM ended with status {self.exit_status}; console: {self.console.tail()}"


class FakeRunner:
    """Launches fakes; `manager` is shared by all launches of a test unless `managers` names another by realm."""

    announced = True

    def __init__(self) -> None:
        self.manager = FakeManager()
        self.vms: list[FakeVm] = []
        self.fail: Exception | None = None

    async def launch(self, request: LaunchRequest) -> FakeVm:
        if self.fail is not None:
            raise self.fail
        self.manager.launches.append(request)
        vm = FakeVm(request, self.manager)
        self.vms.append(vm)
        return vm

    def fall_back(self) -> bool:
        return False


class FakePlatform:
    """Counts descriptors, so that a test sees any that is left."""

    def __init__(self) -> None:
        self.open = 0
        self.total = 0
        self.metadata: bytes | None = None
        self.refuse: Exception | None = None

    async def activate(self, plan: Any, metadata: bytes | None) -> Any:
        if self.refuse is not None:
            raise self.refuse
        self.open += 1
        self.total += 1
        self.metadata = metadata
        return FakeSession(self)


class FakeSession:
    def __init__(self, platform: FakePlatform) -> None:
        self._platform = platform
        self.activation = Activation("00" * 8, "ab" * 32, "console=ttyS0", "/nowhere", -1, -1)

    async def close(self) -> None:
        self._platform.open -= 1


class Harness:
    """The warden, its fakes, and a client."""

    def __init__(self, directory: Path, timeouts: Timeouts = FAST) -> None:
        self.directory = directory
        self.options = WardenOptions(
            workdir=directory / "work",
            socket=directory / "w.sock",
            platform_socket=directory / "none",
            timeouts=timeouts,
        )
        self.runner = FakeRunner()
        self.platform = FakePlatform()
        self.loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._serve())
        except BaseException as error:
            self._failed = error
            self._ready.set()

    async def _serve(self) -> None:
        self.warden = Warden(self.options, self.runner, self.platform)
        self.warden.load()
        self.clients = ClientServer(self.warden)
        self._stop = asyncio.Event()
        server = await asyncio.start_unix_server(self.clients.serve, path=str(self.options.socket))
        self._ready.set()
        await self._stop.wait()
        server.close()
        await self.clients.stop()
        await self.warden.shut_down()

    def __enter__(self) -> Harness:
        self._thread.start()
        assert self._ready.wait(10)
        if self._failed:
            raise self._failed
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()
        self.options.socket.unlink(missing_ok=True)

    def call(self, function: Callable[[], None]) -> None:
        """Run `function` in the warden's loop."""
        done = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (function(), done.set()))
        assert done.wait(5)

    @contextlib.contextmanager
    def client(self) -> Iterator[WardenClient]:
        with WardenClient(self.options.socket) as client:
            yield client

    def launch(self, **changes: Any) -> dict[str, Any]:
        """LAUNCH over two small files."""
        return self.plan(self.directory, **changes)

    @staticmethod
    def plan(directory: Path, **changes: Any) -> dict[str, Any]:
        """LAUNCH over two small files in `directory`, made when they are not there."""
        for name in ("kernel", "initramfs"):
            file = directory / name
            if not file.exists():
                file.write_bytes(name.encode() * 100)
        plan = {
            "schema": 1,
            "vmm": "kvmtool",
            "profile": "tf-rmm",
            "hash_algo": "sha256",
            "kernel": str(directory / "kernel"),
            "kernel_sha256": None,
            "initramfs": str(directory / "initramfs"),
            "initramfs_sha256": None,
            "cmdline": "quiet",
            "vcpus": 2,
            "memory_mib": 256,
            "console": "serial",
            "irqchip": "gicv3",
            "sve_vl": 0,
            "pmu": False,
            "pmu_counters": 0,
            "disks": 1,
            "nics": 1,
            "vsock": True,
            "personalization": "0" * 128,
        }
        return plan | changes


def upstream_config(**network: Any) -> dict[str, Any]:
    """CONFIG of CreateRealm, as upstream's client sends it by default."""
    return {
        "id": None,
        "machine": "virt",
        "cpu": {"cpu": "cortex-a57", "cores_number": 2},
        "memory": {"ram_size": 2048},
        "network": {
            "vsock_cid": 12344,
            "tap_device": "tap100",
            "mac_address": "52:55:00:11:55:01",
            "hardware_device": "e1000",
            "remote_terminal_uri": None,
        }
        | network,
        "kernel": {
            "kernel_path": "/opt/realm/Image",
            "kernel_initramfs_path": "/opt/realm/initramfs",
            "kernel_cmd_params": None,
        },
        "metadata": None,
    }


def random_uuid() -> str:
    return str(uuid.uuid4())


__all__ = ["FAST", "FakeManager", "Harness", "WardenError", "os", "random_uuid", "upstream_config"]
