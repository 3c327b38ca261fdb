"""The access log: who was admitted, who was refused, and why. One JSON object a line.

Strangers cause these lines and their evidence shapes parts of the text, so lines are bounded, the file is
too, and nothing in it reaches a terminal as a control sequence.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from islet_cli.fsutil import os_error

logger = logging.getLogger(__name__)

MAX_FILE = 4 << 20
"""Bytes after which the file becomes `FILE.1`, replacing an earlier one."""
MAX_TEXT = 600
"""Characters of one message."""


class AccessLog:
    """Appends events to a file (mode 0600), or to the program's log when there is no file."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = threading.Lock()

    def record(self, peer: str, event: str, code: str, text: str) -> None:
        """Note one event; the signature is that of the native listener's callback.

        Args:
            peer: Address and port of the client.
            event: `admitted` or `refused`.
            code: Which check refused; empty for an admission.
            text: The check's sentence; for an admission the identity as JSON.
        """
        entry: dict[str, Any] = {"time": _now(), "event": event, "peer": peer}
        if event == "admitted":
            entry["realm"] = json.loads(text)
        else:
            entry |= {"code": printable(code), "reason": printable(text)}
        logger.info("%s", render(entry))
        if self.path is not None:
            self._append(self.path, json.dumps(entry).encode() + b"\n")

    def _append(self, path: Path, line: bytes) -> None:
        with self._lock:
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.write(descriptor, line)
                    size = os.fstat(descriptor).st_size
                finally:
                    os.close(descriptor)
                if size > MAX_FILE:
                    path.replace(path.with_name(path.name + ".1"))
            except OSError as error:
                # A full disk must not decide who is served.
                logger.error("%s: %s", path, error.strerror)


def _now() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"


def printable(text: str, limit: int = MAX_TEXT) -> str:
    """`text` without anything that a terminal would obey, cut to `limit` characters."""
    clean = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[:limit])
    return clean + ("…" if len(text) > limit else "")


def read(path: Path, *, last: int | None = None) -> list[dict[str, Any]]:
    """The events, oldest first; lines that are not ours are left out.

    Args:
        path: The file; its predecessor `FILE.1` is read first.
        last: Only so many events at the end.

    Raises:
        InputError: The file cannot be read.
    """
    events = [event for file in (path.with_name(path.name + ".1"), path) for event in _events(file)]
    return events if last is None else events[len(events) - min(last, len(events)) :]


def _events(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        raise os_error(error, path) from error
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and isinstance(value.get("event"), str):
            yield value


def render(event: dict[str, Any]) -> str:
    """One event as a line for people."""
    head = f"{event.get('time', '?')}  {event.get('peer', '?')}  {event['event']}"
    if event["event"] == "admitted":
        realm = event.get("realm")
        known = realm if isinstance(realm, dict) else {}
        tail = f"realm {known.get('reference')}, RIM {str(known.get('rim'))[:16]}…"
        tail += f" ({known['warning']})" if "warning" in known else ""
    else:
        tail = f"{event.get('code', '?')}: {event.get('reason', '')}"
    return printable(f"{head}  {tail}", limit=2 * MAX_TEXT)
