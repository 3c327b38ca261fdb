"""The manager's loop: requests of the host, each answered once and in order.

One thread reads ahead, another answers. So a request that ends things (Shutdown, Reboot) can cut short a provisioning
that is under way, while the order of answers stays that of the requests.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from islet_cli import framing
from islet_cli.appmanager import messages as m
from islet_cli.appmanager.console import describe
from islet_cli.appmanager.control import Channel, ChannelClosedError
from islet_cli.appmanager.messages import Answer, AnswerError
from islet_cli.appmanager.power import Action, Power
from islet_cli.errors import IsletError, UnavailableError

if TYPE_CHECKING:
    from islet_cli.appmanager.application import Application
    from islet_cli.appmanager.provisioning import Provisioner

READ_AHEAD = 64
MAX_LOG_READ = 256 << 10


class HostAttester(Protocol):
    """Makes a token for the host's challenge."""

    def for_host(self, challenge: bytes) -> bytes: ...


@dataclass(frozen=True)
class Services:
    """What the manager uses; replaced in tests.

    Attributes:
        connect: Connects to the host, trying for as long as it makes sense.
        provisioner: Sets up applications.
        attester: Makes tokens for the host; None when the configuration has no source of tokens.
        addresses: The realm's network addresses.
        power: Ends the machine.
        forward_output: Whether the host may read applications' output.
        say: Prints a line on the console.
    """

    connect: Callable[[], Channel]
    provisioner: Provisioner
    attester: HostAttester | None
    addresses: Callable[[], dict[str, m.InterfaceAddress]]
    power: Power
    forward_output: bool
    say: Callable[[str], None]


@dataclass(frozen=True)
class _Work:
    """One thing to answer: a request, or the error that its body was."""

    channel: Channel
    request: m.Request | AnswerError


class Manager:
    """Serves the host until the machine ends or the host is gone for good."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._applications: dict[str, Application] = {}
        self._reformat: set[str] = set()
        self._queue: queue.Queue[_Work | None] = queue.Queue(READ_AHEAD)
        self._handlers: dict[type, Callable[[Any], Answer | None]] = {
            m.ProvisionInfo: self._provision,
            m.GetAttestationToken: self._token,
            m.GetIfAddrs: self._addresses,
            m.CheckStatus: lambda request: self._application(request.id).supervisor.status(),
            m.StartApp: lambda request: self._application(request.id).supervisor.start(),
            m.StopApp: lambda request: self._application(request.id).supervisor.stop(),
            m.KillApp: lambda request: self._application(request.id).supervisor.kill(),
            m.AllowReformat: self._allow_reformat,
            m.ReadLog: self._read_log,
            m.Shutdown: lambda _request: self._end("poweroff"),
            m.Reboot: lambda _request: self._end("restart"),
        }

    def run(self) -> None:
        """Connect, serve, connect again; returns after the host was gone for good and everything was undone."""
        worker = threading.Thread(target=self._work, name="answers", daemon=True)
        worker.start()
        try:
            while True:
                self._serve(self._services.connect())
        except UnavailableError as error:
            self._services.say(error.message)
        finally:
            self._services.provisioner.cancel()
            self._queue.put(None)
            worker.join()
            self.close()

    def _serve(self, channel: Channel) -> None:
        """Read requests until the connection is over."""
        try:
            while True:
                try:
                    work = _Work(channel, m.parse_request(channel.receive()))
                except framing.BodyError as error:
                    work = _Work(channel, AnswerError("InvalidRequest", error.message))
                except m.RequestError as error:
                    work = _Work(channel, AnswerError("InvalidRequest", error.message))
                except framing.FramingError as error:
                    # Out of step: one answer, then a new connection.
                    self._queue.put(_Work(channel, AnswerError("InvalidRequest", error.message)))
                    self._queue.join()
                    return
                if isinstance(work.request, (m.Shutdown, m.Reboot)):
                    self._services.provisioner.cancel()
                self._queue.put(work)
        except ChannelClosedError as error:
            self._services.say(error.message)
        finally:
            channel.close()

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                self._answer(work)
            finally:
                self._queue.task_done()

    def _answer(self, work: _Work) -> None:
        answer = self.handle(work.request)
        if answer is None:
            return
        try:
            work.channel.send(answer)
        except ChannelClosedError:
            # The one who asked is gone, and with it the need for an answer.
            return

    def handle(self, request: m.Request | AnswerError) -> dict[str, Any] | None:
        """The answer to one request, None when none is due (a successful Shutdown or Reboot)."""
        if isinstance(request, AnswerError):
            return request.to_json()
        try:
            answer = self._handlers[type(request)](request)
            return answer.to_json() if answer is not None else None
        except AnswerError as error:
            return error.to_json()
        except Exception as error:
            # Whatever it is: the host gets its one answer, and the console the reason.
            self._services.say(f"internal fault: {describe(error)}")
            return AnswerError(_KINDS[type(request)], f"internal: {type(error).__name__}").to_json()

    # -- requests ---------------------------------------------------------------------------------------

    def _application(self, identity: str) -> Application:
        application = self._applications.get(identity)
        if application is None:
            raise AnswerError("ApplicationNotFound")
        return application

    def _provision(self, request: m.ProvisionInfo) -> Answer:
        if self._applications:
            raise AnswerError("ProvisioningError", "already provisioned")
        reformat, self._reformat = frozenset(self._reformat), set()
        try:
            applications = self._services.provisioner.provision(request.applications, reformat)
        except IsletError as error:
            text = f"{error.code}: {error.message.removeprefix(error.code + ': ')}"
            self._services.say(f"provisioning failed: {text}")
            raise AnswerError("ProvisioningError", text) from error
        self._applications = {one.id: one for one in applications}
        if applications:
            self._services.say(f"provisioned: {', '.join(one.name for one in applications)}")
        return m.SUCCESS

    def _allow_reformat(self, request: m.AllowReformat) -> Answer:
        if self._applications:
            raise AnswerError("InvalidRequest", "already provisioned")
        self._reformat.add(request.id)
        return m.SUCCESS

    def _token(self, request: m.GetAttestationToken) -> Answer:
        kind = "AttestationTokenReadingError"
        if self._services.attester is None:
            raise AnswerError(kind, "this image has no source of tokens")
        if len(request.challenge) != m.CHALLENGE_SIZE:
            raise AnswerError(kind, f"challenge must be {m.CHALLENGE_SIZE} bytes, got {len(request.challenge)}")
        try:
            return m.token(self._services.attester.for_host(request.challenge))
        except IsletError as error:
            raise AnswerError(kind, error.message) from error

    def _addresses(self, _request: m.GetIfAddrs) -> Answer:
        try:
            return m.addresses(self._services.addresses())
        except IsletError as error:
            raise AnswerError("GetIfAddrsError", error.message) from error

    def _read_log(self, request: m.ReadLog) -> Answer:
        if not self._services.forward_output:
            raise AnswerError("InvalidRequest", "the policy does not forward output")
        log = self._application(request.id).supervisor.log
        return m.log_data(*log.read(request.offset, min(request.limit, MAX_LOG_READ)))

    # -- the end ----------------------------------------------------------------------------------------

    def _end(self, action: Action) -> None:
        self.close()
        try:
            self._services.power.end(action)
        except (IsletError, OSError) as error:
            raise AnswerError("SystemPowerActionFailed", str(error)) from error

    def close(self) -> None:
        """Stop all applications at once and undo their set-up, newest first; errors go to the console."""
        applications = list(self._applications.values())
        self._applications = {}
        stoppers = [threading.Thread(target=_stop, args=(one, self._services.say)) for one in applications]
        for stopper in stoppers:
            stopper.start()
        for stopper in stoppers:
            stopper.join()
        for application in reversed(applications):
            application.close(self._services.say)


def _stop(application: Application, say: Callable[[str], None]) -> None:
    try:
        application.supervisor.end()
    except (AnswerError, IsletError, OSError) as error:
        say(f"{application.name}: {error}")


_KINDS: dict[type, str] = {
    m.ProvisionInfo: "ProvisioningError",
    m.GetAttestationToken: "AttestationTokenReadingError",
    m.GetIfAddrs: "GetIfAddrsError",
    m.CheckStatus: "ApplicationCheckStatusFailed",
    m.StartApp: "ApplicationLaunchFailed",
    m.StopApp: "ApplicationStopFailed",
    m.KillApp: "ApplicationKillFailed",
    m.AllowReformat: "InvalidRequest",
    m.ReadLog: "InvalidRequest",
    m.Shutdown: "SystemPowerActionFailed",
    m.Reboot: "SystemPowerActionFailed",
}
"""Which error kind tells of a fault while answering each request."""
