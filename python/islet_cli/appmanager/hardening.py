"""What is switched off in the kernel before the first application runs.

From then on nothing in the realm, root in a container included, can load kernel code or replace the kernel.
"""

from __future__ import annotations

from pathlib import Path

from islet_cli.errors import OperationError

_SETTINGS = (
    ("sysrq", "0"),
    ("modules_disabled", "1"),
    ("kexec_load_disabled", "1"),
)
_SYSCTL = Path("/proc/sys/kernel")


def lock_down(sysctl: Path = _SYSCTL) -> None:
    """Turn off sysrq, module loading and kexec. A kernel without one of them has nothing to turn off.

    Raises:
        OperationError: A switch is there and cannot be set (`hardening`).
    """
    for name, value in _SETTINGS:
        path = sysctl / name
        if not path.exists():
            continue
        try:
            if path.read_text().strip() != value:
                path.write_text(value)
        except OSError as error:
            raise OperationError(f"{path}: cannot be set to {value}: {error.strerror}", code="hardening") from error
