"""The sample applications of `islet demo`: root file systems made of a static busybox and a script.

They need no compiler and no clone: the scripts are part of this package, the busybox comes from the
Debian package that every realm image is made with.
"""

from __future__ import annotations

from pathlib import Path

COUNTER = "counter"
HELLO_HTTP = "hello-http"
HTTP_PORT = 8080

_APPLETS = ("sh", "cat", "date", "echo", "httpd", "mkdir", "sleep", "sync", "wc")

# `sync FILE` is fsync: a run that was announced survives whatever happens to the host next.
_COUNTER_SCRIPT = """\
#!/bin/sh
# Append a line to the log in the data volume at every start and say how many there are.
set -eu
log=/var/lib/counter/runs
mkdir -p /var/lib/counter
echo "run by version {version}, marker {marker}" >> "$log"
sync "$log"
echo "counter version {version}: run $(wc -l < "$log")"
trap 'echo "counter: stopping"; exit 0' TERM
while :; do
  sleep 3600 &
  wait $!
done
"""

_PAGE = """\
<!doctype html>
<title>hello</title>
<p>Hello from a realm. Only its owner knows that marker {marker} is in here.</p>
"""


def _root(directory: Path, busybox: bytes) -> Path:
    binaries = directory / "bin"
    binaries.mkdir(parents=True)
    (binaries / "busybox").write_bytes(busybox)
    (binaries / "busybox").chmod(0o755)
    for applet in _APPLETS:
        (binaries / applet).symlink_to("busybox")
    for name in ("etc", "tmp", "var/lib", "proc", "dev", "sys", "run"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    (directory / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    (directory / "etc/group").write_text("root:x:0:\n")
    return directory


def write_counter(directory: Path, busybox: bytes, *, version: int, marker: str) -> list[str]:
    """Write the counter's root file system into `directory` (which must not exist) and return its entrypoint."""
    program = _root(directory, busybox) / "bin/counter"
    program.write_text(_COUNTER_SCRIPT.format(version=version, marker=marker))
    program.chmod(0o755)
    return ["/bin/counter"]


def write_hello_http(directory: Path, busybox: bytes, *, marker: str) -> list[str]:
    """Write a one-page HTTP service on port 8080 into `directory` and return its entrypoint."""
    page = _root(directory, busybox) / "www/index.html"
    page.parent.mkdir()
    page.write_text(_PAGE.format(marker=marker))
    return ["/bin/httpd", "-f", "-p", str(HTTP_PORT), "-h", "/www"]
