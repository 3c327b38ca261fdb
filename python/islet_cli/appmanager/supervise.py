"""One application's life: start, stop, kill, status, as the realm protocol defines them.

request   idle (never started, over and seen)   running             ended, not yet reported
start     starts                                refused             starts
stop      refused                               signal, then kill   good
kill      refused                               kill                good
status    NotStarted                            IsRunning           Exited(raw status), once
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from islet_cli.appmanager.container import Containers, Process, ProcessSpec
from islet_cli.appmanager.logring import LogRing
from islet_cli.appmanager.messages import NOT_STARTED, RUNNING, SUCCESS, Answer, AnswerError, exited
from islet_cli.errors import IsletError

STOP_GRACE_S = 8.0
KILL_WAIT_S = 10.0


class Supervisor:
    """Holds one application's process.

    Args:
        spec: What to run.
        stop_signal: The signal that asks it to end.
        containers: Starts it.
        on_start: Called after each successful start.
        grace_s: Time between stop signal and kill, in seconds.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        stop_signal: int,
        containers: Containers,
        *,
        on_start: Callable[[], None] = lambda: None,
        grace_s: float = STOP_GRACE_S,
    ) -> None:
        self.log = LogRing()
        self._spec = spec
        self._stop_signal = stop_signal
        self._containers = containers
        self._on_start = on_start
        self._grace_s = grace_s
        self._lock = threading.Lock()
        self._process: Process | None = None
        self._unreported: int | None = None

    def start(self) -> Answer:
        """Start it.

        Raises:
            AnswerError: `ApplicationLaunchFailed`: it runs already, or cannot be started.
        """
        with self._lock:
            if self._process is not None:
                raise AnswerError("ApplicationLaunchFailed", "already running")
            try:
                # The end cannot be reported before the lock is free: `_ended` takes it.
                self._process = self._containers.start(self._spec, self.log.append, self._ended)
            except IsletError as error:
                raise AnswerError("ApplicationLaunchFailed", f"{error.code}: {error.message}") from error
            self._unreported = None
        self._on_start()
        return SUCCESS

    def _ended(self, status: int) -> None:
        with self._lock:
            self._process = None
            self._unreported = status

    def stop(self) -> Answer:
        """Ask it to end, and kill it when it has not within the grace period.

        Raises:
            AnswerError: `ApplicationStopFailed`: it does not run, or cannot be killed.
        """
        process = self._take("ApplicationStopFailed")
        if process is not None:
            process.signal(self._stop_signal)
            if process.wait(self._grace_s) is None:
                self._kill(process, "ApplicationStopFailed")
            self._forget()
        return SUCCESS

    def kill(self) -> Answer:
        """End it at once.

        Raises:
            AnswerError: `ApplicationKillFailed`: it does not run, or does not die.
        """
        process = self._take("ApplicationKillFailed")
        if process is not None:
            self._kill(process, "ApplicationKillFailed")
            self._forget()
        return SUCCESS

    def _take(self, kind: str) -> Process | None:
        """The running process; None when it ended but that was not reported yet."""
        with self._lock:
            if self._process is None and self._unreported is None:
                raise AnswerError(kind, "not running")
            if self._process is None:
                self._unreported = None
            return self._process

    def _kill(self, process: Process, kind: str) -> None:
        process.kill()
        if process.wait(KILL_WAIT_S) is None:
            raise AnswerError(kind, "it does not end")

    def _forget(self) -> None:
        with self._lock:
            self._unreported = None

    def status(self) -> Answer:
        """Its state; an end is told once."""
        with self._lock:
            if self._process is not None:
                return RUNNING
            if self._unreported is None:
                return NOT_STARTED
            status, self._unreported = self._unreported, None
            return exited(status)

    def end(self) -> None:
        """Stop it if it runs; errors are the caller's to report."""
        with self._lock:
            running = self._process is not None
        if running:
            self.stop()
