"""`python3 -m islet_cli.appmanager`: what the realm's init runs."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from islet_cli.appmanager import clock, config, console
from islet_cli.errors import InputError, InternalError, IsletError, OperationError, UnavailableError

if TYPE_CHECKING:
    from islet_cli.appmanager.application import Surroundings
    from islet_cli.appmanager.config import Config
    from islet_cli.appmanager.manager import Manager
    from islet_cli.appmanager.provisioning import Provisioner
    from islet_cli.appmanager.rsi import Rsi
    from islet_cli.appmanager.tokens import Attester, FileAttester

RUN_DIR = Path("/run/islet")
REM_MARKER = RUN_DIR / "rem-extended"
PREPARED = RUN_DIR / "prepared"
PREPARED_LIMIT_S = 120.0
_RSI_LIMIT_S = 30.0


def main(arguments: list[str] | None = None) -> int:
    """Run the manager; the exit code is that of the error families."""
    try:
        return serve(_config_path(sys.argv[1:] if arguments is None else arguments))
    except IsletError as error:
        console.say(f"the manager ends: {error.message}")
        return error.exit_code
    except Exception as error:
        # One line with the place of the fault: the console is the host's.
        console.say(f"the manager ends: internal fault: {console.describe(error)}")
        return InternalError.exit_code


def _config_path(arguments: list[str]) -> Path:
    """The one option, read by hand: a parser library would cost a noticeable part of the start."""
    if not arguments:
        return config.DEFAULT_PATH
    if len(arguments) == 2 and arguments[0] in ("-c", "--config"):
        return Path(arguments[1])
    raise InputError("usage: app-manager [--config FILE]", code="usage")


def serve(path: Path) -> int:
    """Load the configuration, connect and serve; power off when the host is gone for good.

    Raises:
        IsletError: The realm cannot be served; the message says why.
    """
    from islet_cli.appmanager.power import KernelPower

    settings = config.load(path)
    build_time = clock.read_build_time()
    if build_time is not None and clock.raise_clock(build_time):
        console.say("the host's clock is behind the image's build time: raised to that")
    make_manager(settings).run()
    console.say("powering off")
    KernelPower().end("poweroff")
    return 0


def make_manager(settings: Config) -> Manager:
    """Assemble the manager from its configuration.

    Raises:
        IsletError: Something that the configuration needs is not there.
    """
    from islet_cli.appmanager import control, network
    from islet_cli.appmanager.manager import Manager, Services
    from islet_cli.appmanager.power import KernelPower

    rsi = open_rsi(settings) if settings.needs_rsi else None
    attester = make_attester(settings, rsi)
    opener = control.opener(settings.control, vsock_port=settings.vsock_port)

    def connect() -> control.Channel:
        channel = control.connect(opener)
        console.say("connected")
        return channel

    return Manager(
        Services(
            connect=connect,
            provisioner=make_provisioner(settings, rsi, attester),
            attester=attester,
            addresses=network.addresses,
            power=KernelPower(),
            forward_output=settings.policy.forward_output,
            say=console.say,
        )
    )


def open_rsi(settings: Config) -> Rsi:
    """Open the monitor's interface; its driver may still be loading."""
    from islet_cli.appmanager.rsi import open_rsi as open_once

    deadline = time.monotonic() + _RSI_LIMIT_S
    while True:
        try:
            return open_once(settings.rsi)
        except UnavailableError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def make_attester(settings: Config, rsi: Rsi | None) -> Attester | FileAttester | None:
    """The source of tokens: only an RA-TLS launcher has one."""
    from islet_cli.appmanager.tokens import Attester, FileAttester

    if settings.launcher.kind != "ra-tls":
        return None
    if settings.launcher.token_file is not None:
        return FileAttester(settings.launcher.token_file)
    assert rsi is not None
    return Attester(rsi, raw_host_challenges=settings.policy.raw_token_challenge)


def make_provisioner(settings: Config, rsi: Rsi | None, attester: Attester | FileAttester | None) -> Provisioner:
    """The provisioner; what it needs is assembled when it is first used."""
    from islet_cli.appmanager.hardening import lock_down
    from islet_cli.appmanager.provisioning import Provisioner

    return Provisioner(
        settings,
        lambda: assemble(settings, attester),
        rsi,
        rem_marker=REM_MARKER,
        report=console.Progress().report,
        say=console.say,
        lock_down=lock_down,
    )


def assemble(settings: Config, attester: Attester | FileAttester | None) -> Surroundings:
    """Wait for disks and network, and put together what the set-up of applications uses.

    Raises:
        IsletError: The image is not prepared, or this manager does not do what the configuration asks for.
    """
    from islet_cli.appmanager import network
    from islet_cli.appmanager.application import Surroundings
    from islet_cli.appmanager.container import NativeContainers
    from islet_cli.appmanager.fetcher import RegistrySource
    from islet_cli.appmanager.volumes import CryptStorage
    from islet_cli.keys.ecc import load_public

    if settings.policy.compat:
        raise OperationError("this manager does not run images with a compat policy", code="not-supported")
    _wait_until_prepared()
    if not network.wait_for_address():
        console.say("no network address yet: going on without one")
    return Surroundings(
        config=settings,
        storage=CryptStorage(settings.crypto, settings.fs_type),
        source=RegistrySource(settings.launcher, attester.for_registry if attester is not None else None),
        containers=NativeContainers(),
        ca=load_public(settings.ca_pub),
        run_dir=RUN_DIR / "applications",
    )


def _wait_until_prepared() -> None:
    """Wait until init has loaded the modules for disks and file systems."""
    deadline = time.monotonic() + PREPARED_LIMIT_S
    while not PREPARED.exists():
        if time.monotonic() > deadline:
            raise UnavailableError("the realm's init did not finish its preparations", code="not-prepared")
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
