"""Requests with retries, redirects and a small pool of connections.

Source: docs/registry.md; OCI distribution-spec 1.1; RFC 9110 for Retry-After, Range and Warning.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from islet_cli.errors import InputError, IsletError, OperationError, UnavailableError, VerificationError
from islet_cli.fsutil import read_file
from islet_cli.registry.client.address import Address, Credentials, TlsOptions, TokenProvider, parse_address

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from islet_cli._native.ratls import Client
    from islet_cli.registry.client.connection import Connection

MAX_TRIES = 5
MAX_REDIRECTS = 5
MAX_RETRY_AFTER_S = 60.0
RETRIED_STATUS = frozenset((408, 429, 500, 502, 503, 504))
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_MAX_IDLE = 4

T = TypeVar("T")

Body = Callable[[], Iterable[bytes]]
"""Gives the bytes of a request, from the beginning at each call."""


class RetryableError(Exception):
    """A failure after which the same request may succeed.

    Args:
        reason: For the error that ends the tries.
        status: The HTTP status, None when the transport failed.
        wait_s: What the server asked for in Retry-After.
    """

    def __init__(self, reason: str, status: int | None = None, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.wait_s = wait_s


@dataclass(frozen=True)
class Backoff:
    """Delays between tries: doubling from `first_s` to `last_s`, with a random part of up to a half."""

    first_s: float = 0.5
    last_s: float = 8.0
    tries: int = MAX_TRIES

    def delay(self, failures: int) -> float:
        """Seconds to wait after the given number of failures in a row."""
        base: float = min(self.last_s, self.first_s * 2.0 ** (failures - 1))
        return base * random.uniform(0.5, 1.0)  # noqa: S311 (spreads load, guards nothing)


class Transport:
    """Sends requests to one registry; safe for several threads.

    Args:
        address: `HOST:PORT`.
        tls: How to secure the connection.
        backoff: Delays between tries.
        sleep: Replaced in tests.
        credentials: Shown to this registry only, in HTTP Basic.

    Raises:
        InputError: `address_invalid`; `credentials_in_clear`: a password would cross a network unprotected.
    """

    def __init__(
        self,
        address: str,
        tls: TlsOptions,
        *,
        backoff: Backoff | None = None,
        sleep: Callable[[float], None] = time.sleep,
        credentials: Credentials | None = None,
    ) -> None:
        self.address = parse_address(address, tls.mode)
        if credentials is not None and tls.mode == "none" and not self.address.is_loopback:
            raise InputError(
                f"{self.address}: a password is not sent in the clear",
                code="credentials_in_clear",
                hint="use --tls tls",
            )
        self._authorization = credentials.basic() if credentials is not None else None
        self.warnings: list[str] = []
        self._tls = tls
        self._backoff = backoff or Backoff()
        self._sleep = sleep
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._client: Client | None = None

    def close(self) -> None:
        """Close the connections that are idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def attempt(self, action: Callable[[], T], *, progress: Callable[[], int] | None = None) -> T:
        """Call `action` until it does not raise `RetryableError`, at most `backoff.tries` times in a row.

        Args:
            action: One try.
            progress: Bytes won so far; when it grew, the count of failures starts again.

        Raises:
            UnavailableError: `registry_unreachable`: the transport failed again and again.
            OperationError: `http_status`: the server kept answering with a passing failure.
        """
        failures = 0
        won = progress() if progress is not None else 0
        while True:
            try:
                return action()
            except RetryableError as error:
                now = progress() if progress is not None else 0
                failures = 1 if now > won else failures + 1
                won = now
                if failures >= self._backoff.tries:
                    raise self._exhausted(error) from error
                wait_s = error.wait_s if error.wait_s is not None else self._backoff.delay(failures)
                self._sleep(min(wait_s, MAX_RETRY_AFTER_S))

    def _exhausted(self, error: RetryableError) -> IsletError:
        if error.status is not None:
            return OperationError(f"{self.address}: {error.reason}", code="http_status", status=error.status)
        return UnavailableError(
            f"the registry {self.address} cannot be reached: {error.reason}",
            code="registry_unreachable",
            hint="is it running? see: islet registry status",
        )

    @contextlib.contextmanager
    def get(self, path: str, headers: Mapping[str, str], *, accept: frozenset[int]) -> Iterator[HTTPResponse]:
        """Send one GET, follow redirects, yield the response when its status is one of `accept`.

        Raises:
            RetryableError: The transport failed, or the server asked to come again.
            IsletError: TLS refusal, another status, a redirect that must not be followed.
        """
        address, target = self.address, path
        for _ in range(MAX_REDIRECTS + 1):
            with self._response(address, "GET", target, headers) as response:
                self._note_warnings(response)
                if response.status in accept:
                    yield response
                    return
                if response.status not in _REDIRECTS:
                    raise self._bad_status(response, target)
                address, target = self._redirect(address, target, response.headers.get("Location", ""))
        raise OperationError(f"{self.address}{path}: more than {MAX_REDIRECTS} redirects", code="http_status")

    @contextlib.contextmanager
    def send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        *,
        accept: frozenset[int],
        body: Body | None = None,
    ) -> Iterator[HTTPResponse]:
        """Send one request of any method; redirects are not followed.

        Args:
            body: Its length stands in the headers.

        Raises:
            RetryableError: The transport failed, or the server asked to come again.
            IsletError: TLS refusal, another status.
        """
        with self._response(self.address, method, path, headers, body) as response:
            self._note_warnings(response)
            if response.status not in accept:
                raise self._bad_status(response, path)
            yield response

    def resolve(self, path: str, location: str) -> str:
        """The path that a Location header names, which must lie in this registry.

        Raises:
            VerificationError: `redirect_refused`.
        """
        address, target = self._redirect(self.address, path, location)
        if address != self.address:
            raise VerificationError(
                f"{self.address}: sends uploads to {address}, which nobody vouched for", code="redirect_refused"
            )
        return target

    @contextlib.contextmanager
    def _response(
        self, address: Address, method: str, target: str, headers: Mapping[str, str], body: Body | None = None
    ) -> Iterator[HTTPResponse]:
        from http.client import HTTPException

        connection, response = self._send(address, method, target, headers, body)
        reusable = False
        try:
            yield response
            # Only a response read to its end leaves the connection where the next one begins.
            reusable = (response.isclosed() or response.length == 0) and not response.will_close
        except IsletError as error:
            raise self._explain(error, address) from None
        except (OSError, HTTPException) as error:
            raise RetryableError(_transport_reason(error)) from error
        finally:
            response.close()
            self._put_back(connection, address, reusable)

    def _send(
        self, address: Address, method: str, target: str, headers: Mapping[str, str], body: Body | None
    ) -> tuple[Connection, HTTPResponse]:
        from http.client import HTTPException

        sent = dict(headers)
        if self._authorization is not None and address == self.address:
            sent["Authorization"] = self._authorization
        while True:
            connection, fresh = self._take(address)
            try:
                connection.request(method, target, body=body() if body is not None else None, headers=sent)
                return connection, connection.getresponse()
            except IsletError as error:
                connection.close()
                raise self._explain(error, address) from None
            except (OSError, HTTPException) as error:
                connection.close()
                # The server may have closed an idle connection at any time; that is no failure. But part of
                # a body may have arrived, and only the caller knows how to go on from there.
                if fresh or body is not None:
                    raise RetryableError(_transport_reason(error), wait_s=None if fresh else 0.0) from error
            except BaseException:
                connection.close()
                raise

    def _explain(self, error: IsletError, address: Address) -> IsletError:
        from islet_cli.registry.client.connection import explain

        return error if str(address) in error.message else explain(error, address)

    def _take(self, address: Address) -> tuple[Connection, bool]:
        from islet_cli.registry.client.connection import Connection

        if address == self.address:
            with self._lock:
                if self._idle:
                    return self._idle.pop(), False
        return Connection(address, self._native_client()), True

    def _put_back(self, connection: Connection, address: Address, reusable: bool) -> None:
        if reusable and address == self.address:
            with self._lock:
                if len(self._idle) < _MAX_IDLE:
                    self._idle.append(connection)
                    return
        connection.close()

    def _native_client(self) -> Client | None:
        if self._tls.root_ca is None:
            return None
        with self._lock:
            if self._client is None:
                from islet_cli import _native

                root = read_file(self._tls.root_ca, limit=1 << 20)
                provider = self._tls.token_provider
                self._client = _native.ratls.Client(root, _serialised(provider) if provider is not None else None)
            return self._client

    def _redirect(self, address: Address, target: str, location: str) -> tuple[Address, str]:
        """Where a redirect leads; refuses what would weaken the connection."""
        from urllib.parse import urljoin, urlsplit

        scheme = "http" if self._tls.mode == "none" else "https"
        refused = VerificationError(f"{self.address}: redirect to {location[:200]!r} refused", code="redirect_refused")
        if address.socket is not None:
            if not location.startswith("/") or location.startswith("//"):
                raise refused
            return address, location
        try:
            parts = urlsplit(urljoin(f"{scheme}://{address}{target}", location))
            if not location or parts.scheme != scheme:
                raise refused
            port = parts.port or (443 if scheme == "https" else 80)
            goal = parse_address(f"{parts.netloc.removesuffix(f':{parts.port}')}:{port}", "none")
        except (InputError, ValueError):
            raise refused from None
        # An attesting client shows its evidence to the registry that it was told to use, and to nobody else.
        if goal != address and self._tls.mode == "ra-tls":
            raise refused
        return goal, parts.path + (f"?{parts.query}" if parts.query else "")

    def _bad_status(self, response: HTTPResponse, target: str) -> Exception:
        status = response.status
        if status in RETRIED_STATUS:
            return RetryableError(f"it answers {status} {response.reason}", status, _retry_after(response))
        detail = _error_text(response.read(4096))
        message = f"{self.address}{target}: the registry answers {status}" + (f" ({detail})" if detail else "")
        family = InputError if status in (400, 404) else OperationError
        hint = "it wants a user and a password: --credentials FILE" if status == 401 else None
        return family(message, code="http_status", hint=hint, status=status, reason=detail)

    def _note_warnings(self, response: HTTPResponse) -> None:
        for value in response.headers.get_all("Warning", []):
            text = _printable(value)
            with self._lock:
                if text not in self.warnings and len(self.warnings) < 16:
                    self.warnings.append(text)


def _serialised(provider: TokenProvider) -> TokenProvider:
    """A provider that one thread at a time may use: a realm has one channel to its monitor."""
    lock = threading.Lock()

    def call(challenge: bytes) -> bytes:
        with lock:
            return provider(challenge)

    return call


def _transport_reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return _printable(str(error)) or type(error).__name__


def _retry_after(response: HTTPResponse) -> float | None:
    value = response.headers.get("Retry-After", "")
    return min(float(value), MAX_RETRY_AFTER_S) if value.isascii() and value.isdigit() else None


def _printable(text: str, limit: int = 300) -> str:
    """Text of the other side, without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[:limit])


def _error_text(body: bytes) -> str:
    """Code and message of the first error of an OCI error body; empty when there is none."""
    import json

    try:
        first = json.loads(body)["errors"][0]
        return _printable(": ".join(str(first[key]) for key in ("code", "message") if first.get(key)))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
