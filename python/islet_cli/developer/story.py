"""How the demo tells its story: numbered steps with what came out and how long it took, or the same as data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from islet_cli.errors import IsletError, VerificationError


@dataclass
class Step:
    """One step: its title, what came out (in order), and its duration in seconds."""

    number: int
    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the step as a JSON object."""
        return {"step": self.number, "title": self.title, "seconds": round(self.seconds, 2), **self.facts}


class Story:
    """Collects steps and prints them as they happen.

    Args:
        emit: Receives one line at a time, for people.
        total: The number of steps.
    """

    def __init__(self, emit: Callable[[str], None], total: int) -> None:
        self._emit = emit
        self._total = total
        self.steps: list[Step] = []

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Run a block as the next step; its duration is printed when it ends well."""
        step = Step(len(self.steps) + 1, title)
        self.steps.append(step)
        self._emit(f"\n[{step.number:>2}/{self._total}] {title}")
        began = time.monotonic()
        try:
            yield step
        finally:
            step.seconds = time.monotonic() - began
        self._emit(f"        done in {step.seconds:.1f} s")

    def fact(self, step: Step, name: str, value: Any, text: str | None = None) -> None:
        """Record what came out under `name` and print it."""
        step.facts[name] = value
        self._emit(f"        {name.replace('_', ' ')}: {text if text is not None else value}")

    def line(self, text: str) -> None:
        """Print a line of an application or of a program."""
        self._emit(f"        | {text}")

    def expect_refusal(self, step: Step, name: str, attempt: Callable[[], object], *reasons: str) -> IsletError:
        """Require that `attempt` is refused, for one of `reasons` (a part of the code or of the message).

        Raises:
            VerificationError: It was not refused, or for another reason.
        """
        try:
            attempt()
        except IsletError as error:
            told = f"{error.code}: {error.message}"
            if not any(reason in told for reason in reasons):
                raise VerificationError(
                    f"{name}: refused, but for another reason than {' or '.join(reasons)}: {told}", code="demo-failed"
                ) from error
            self.fact(step, name, {"refused": True, "code": error.code, "reason": error.message}, f"refused: {told}")
            return error
        raise VerificationError(f"{name}: was not refused", code="demo-failed")


def require(condition: bool, message: str) -> None:
    """End the demo when something that must hold does not."""
    if not condition:
        raise VerificationError(message, code="demo-failed")
