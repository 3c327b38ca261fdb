"""Provisioning: the ordered transaction from the host's selection to running applications.

    select      the measured policy lets the host choose          nothing touched yet
    recognise   manifests, signatures, data partitions            nothing written
    install     images into idle slots, mounts                    undone on failure
    measure     REM extension, in order                           cannot be undone
    start       in order

A failure undoes everything but measurements; after one of those, only a reboot helps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from islet_cli.appmanager import keys, policy, sealing
from islet_cli.appmanager.config import Config
from islet_cli.appmanager.messages import AnswerError, ApplicationInfo
from islet_cli.appmanager.rsi import Rsi
from islet_cli.appmanager.sealing import SealingMaterial
from islet_cli.errors import IsletError, OperationError

if TYPE_CHECKING:
    from islet_cli.appmanager.application import Application, Surroundings

PARALLEL = 4
Report = Callable[[str, str, int, int], None]
"""`report(name, phase, done, total)` in bytes."""


class CancelledError(OperationError):
    """The host asked for something that ends this provisioning."""

    default_code = "cancelled"


class Provisioner:
    """Provisions the realm's applications, once a boot.

    Args:
        config: The measured configuration.
        assemble: Makes what the set-up of each application uses; called at the first provisioning, because it
            waits for disks and network while the manager is connected already.
        rsi: The monitor, None when the configuration never calls it.
        rem_marker: File that tells init that a measurement was extended.
        report: Progress.
        say: Prints a line for people.
        lock_down: Called once before the first application starts.
    """

    def __init__(
        self,
        config: Config,
        assemble: Callable[[], Surroundings],
        rsi: Rsi | None,
        *,
        rem_marker: Path,
        report: Report,
        say: Callable[[str], None],
        lock_down: Callable[[], None],
    ) -> None:
        self._config = config
        self._assemble = assemble
        self._rsi = rsi
        self._rem_marker = rem_marker
        self._report = report
        self._say = say
        self._lock_down = lock_down
        self._surroundings: Surroundings | None = None
        self._cancelled = threading.Event()
        self._measured = False

    def cancel(self) -> None:
        """Make a provisioning that is under way fail soon."""
        self._cancelled.set()

    def provision(self, infos: Sequence[ApplicationInfo], reformat: frozenset[str]) -> list[Application]:
        """Set up and start the applications.

        Args:
            infos: What the host selected.
            reformat: Ids of applications whose data partition may be formatted.

        Returns:
            The running applications, in the order of installation.

        Raises:
            IsletError: The first reason, in that order; everything but measurements was undone.
        """
        from islet_cli.appmanager.application import Application

        if self._measured:
            raise OperationError("a measurement was extended already: reboot the realm", code="reboot-needed")
        selected = policy.select(self._config, infos)
        if not selected:
            return []
        if self._surroundings is None:
            self._surroundings = self._assemble()
        applications = [
            Application(self._surroundings, one, allow_reformat=one.info.id in reformat) for one in selected
        ]
        try:
            self._set_up(applications)
            self._measure(applications)
            self._start(applications)
        except BaseException as error:
            for application in reversed(applications):
                application.close(self._say)
            if self._measured and isinstance(error, IsletError):
                message = f"{error.message}; a measurement was extended: reboot the realm"
                raise OperationError(message, code=error.code) from error
            raise
        return applications

    def _set_up(self, applications: list[Application]) -> None:
        material = sealing.obtain(self._config, self._rsi)
        try:
            self._recognise(applications, material)
        finally:
            keys.wipe(material.ikm)
        if self._config.same_vendor:
            # Already here, so that a foreign vendor's application changes nothing on any disk.
            policy.check_same_vendor([(one.name, one.vendor_data[0]) for one in applications])
        self._each(applications, self._install)

    def _recognise(self, applications: list[Application], material: SealingMaterial) -> None:
        if material.reason is not None:
            self._say(f"keys are bound to this exact image: {material.reason}")
        self._each(applications, lambda one: one.recognise(material))
        for application in applications:
            if application.decision.offline:
                self._say(f"{application.name}: the registry is away, starting what is installed")

    def _install(self, application: Application) -> None:
        def report(phase: str, done: int, total: int) -> None:
            self._check_cancelled()
            self._report(application.name, phase, done, total)

        application.install(report)
        application.assemble()

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise CancelledError("cancelled by the host")

    def _each(self, applications: list[Application], step: Callable[[Application], None]) -> None:
        """Run a step for all, at most `PARALLEL` at a time; the first failure in list order is raised.

        After a failure no further application begins the step.
        """
        failures: dict[int, BaseException] = {}
        pending = iter(range(len(applications)))
        lock = threading.Lock()

        def work() -> None:
            while True:
                with lock:
                    index = None if failures else next(pending, None)
                if index is None:
                    return
                try:
                    self._check_cancelled()
                    step(applications[index])
                except IsletError as error:
                    failures[index] = _named(applications[index].name, error)
                except BaseException as error:  # handed to the caller's thread
                    failures[index] = error

        threads = [threading.Thread(target=work) for _ in range(min(PARALLEL, len(applications)) - 1)]
        for thread in threads:
            thread.start()
        work()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[min(failures)]

    def _measure(self, applications: list[Application]) -> None:
        index = self._config.extend
        if index is None:
            return
        from islet_cli.attestation.rem import application_measurement, chunks

        if self._rsi is None:
            raise OperationError("extension was configured without RSI", code="config")
        self._check_cancelled()
        # The marker first: init must not start another manager over an extended measurement.
        self._rem_marker.touch()
        self._measured = True
        for application in applications:
            measurement = application_measurement(application.vendor_data, application.decision.image.image_hash)
            for chunk in chunks(measurement):
                self._rsi.measurement_extend(index, chunk)

    def _start(self, applications: list[Application]) -> None:
        self._lock_down()
        if not self._config.autostart:
            return
        for application in applications:
            try:
                application.supervisor.start()
            except AnswerError as error:
                raise OperationError(f"{application.name}: {error.text}", code="launch-failed") from error


def _named(name: str, error: IsletError) -> IsletError:
    """The same error with the application's name in front, unless it is there already."""
    if not error.message.startswith(name):
        error.message = f"{name}: {error.message}"
        error.args = (error.message,)
    return error
