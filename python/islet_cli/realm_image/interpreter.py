"""The realm's own interpreter, run on the building machine from an unpacked tree.

It compiles the realm's Python modules and compresses the image, so that the bytes of both depend on the pinned
packages and not on what the building machine has. It is started through the packages' own dynamic loader, with the
packages' own C library, in a clean environment.
"""

from __future__ import annotations

import base64
import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from islet_cli.errors import OperationError
from islet_cli.realm_image.arch import Arch
from islet_cli.realm_image.debfile import Packed

_TIMEOUT_S = 300


class Interpreter:
    """An unpacked interpreter; see `unpacked`."""

    def __init__(self, root: Path, arch: Arch, version: str) -> None:
        self._root = root
        libraries = ":".join(str(root / part / arch.triplet) for part in ("lib", "usr/lib"))
        self._command = [str(root / arch.loader), "--library-path", libraries, str(root / f"usr/bin/python{version}")]

    def compile(self, sources: Mapping[str, bytes], *, keep_docstrings: Sequence[str] = ()) -> dict[str, bytes]:
        """Byte-compile sources.

        Args:
            sources: By the path that the code will have in the realm, absolute (`/usr/lib/python3.11/os.py`).
            keep_docstrings: Prefixes of paths that keep assertions and docstrings.

        Returns:
            By the same path: a `.pyc` file that is never checked against a source.

        Raises:
            OperationError: The interpreter failed (`compile`).
        """
        jobs = [
            {
                "path": path,
                "source": base64.b64encode(source).decode("ascii"),
                "optimize": 0 if path.startswith(tuple(keep_docstrings)) else 2,
            }
            for path, source in sorted(sources.items())
        ]
        answer = json.loads(self._run("compile_modules.py", json.dumps(jobs).encode()))
        return {path: base64.b64decode(code) for path, code in answer.items()}

    def compress(self, data: bytes, level: int) -> bytes:
        """Compress with Zstandard (one thread, one frame).

        Raises:
            OperationError: The interpreter failed (`compress`).
        """
        return self._run("compress.py", data, str(level))

    def _run(self, script: str, data: bytes, *arguments: str) -> bytes:
        source = (resources.files(__package__) / "data" / script).read_text("utf-8")
        environment = {"PYTHONHOME": str(self._root / "usr"), "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        try:
            done = subprocess.run(
                [*self._command, "-s", "-S", "-B", "-X", "utf8", "-c", source, *arguments],
                input=data,
                capture_output=True,
                env=environment,
                cwd=self._root,
                timeout=_TIMEOUT_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise OperationError(f"the realm's interpreter does not run here: {error}", code="interpreter") from error
        if done.returncode:
            last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"code {done.returncode}"]
            raise OperationError(f"the realm's interpreter failed ({script}): {last[0]}", code="interpreter")
        return done.stdout


@contextmanager
def unpacked(files: Mapping[str, Packed], arch: Arch, version: str) -> Iterator[Interpreter]:
    """Unpack what the interpreter needs into a temporary directory and remove it afterwards.

    Args:
        files: Members of the packages by path.
        arch: Their architecture, which must be this machine's.
        version: Of the interpreter, such as `3.11`.
    """
    wanted = ("lib/", "lib64/", f"usr/lib/{arch.triplet}/", f"usr/lib/python{version}/", f"usr/bin/python{version}")
    with tempfile.TemporaryDirectory(prefix="islet-interpreter-") as directory:
        root = Path(directory)
        for path, member in files.items():
            if not path.startswith(wanted) or path.startswith("lib/modules/") or "/gconv/" in path:
                continue
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if member.target is None:
                target.write_bytes(member.data)
                target.chmod(0o755 if member.executable else 0o644)
            elif not target.exists():
                # Absolute links of the packages lead into the tree, not into this machine.
                to = member.target
                target.symlink_to(root / to.lstrip("/") if to.startswith("/") else to)
        yield Interpreter(root, arch, version)
