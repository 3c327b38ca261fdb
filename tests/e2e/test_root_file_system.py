"""Real input: a Debian root file system with nginx becomes an application in a realm.

Thousands of files, symbolic links and setuid programs go through building, signing, RA-TLS and
checked unpacking; its page is fetched through a published port, again after a reboot.
"""

from __future__ import annotations

import subprocess
import urllib.request
from pathlib import Path

import pytest

from .conftest import Islet, wait_until

pytestmark = [pytest.mark.vm, pytest.mark.root]

PAGE = "<p>served from inside a realm</p>\n"


@pytest.fixture(scope="module")
def root_file_system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minimal Debian with nginx, from the machine's own package sources."""
    root = tmp_path_factory.mktemp("debian") / "root"
    sources = [str(p) for p in (Path("/etc/apt/sources.list"),) if p.exists() and p.read_text().strip()]
    sources += sorted(str(p) for p in Path("/etc/apt/sources.list.d").glob("*.sources"))
    excludes = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
    subprocess.run(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            "--include=nginx-light",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in excludes),
            debian_release(),
            root,
            *sources,
        ],
        check=True,
        timeout=400,
    )
    (root / "var/www/html/index.html").write_text(PAGE)
    return root


def debian_release() -> str:
    """The code name of this machine's distribution."""
    for line in Path("/etc/os-release").read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_CODENAME":
            return value.strip('"')
    pytest.skip("this machine's distribution has no code name that mmdebstrap understands")


def fetch(port: int) -> str | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return None


def test_a_debian_with_nginx_serves_its_page_from_a_realm(
    services: Islet, root_file_system: Path, tmp_path: Path
) -> None:
    islet = services
    files = sum(1 for _ in root_file_system.rglob("*"))
    assert files > 3000
    layout = tmp_path / "nginx"
    built = islet(
        "image", "build", root_file_system, "-o", layout, "--name", "nginx", "--json",
        "--entrypoint", "/usr/sbin/nginx", "--cmd", "-g 'daemon off;'",
    ).json()  # fmt: skip
    assert built["unpacked_bytes"] > 80_000_000
    islet("sign", layout)
    islet("verify", layout, "--ca-pub", islet.state / "keys/root-ca.pub")
    islet("registry", "add", layout)

    islet("realm", "create", "--name", "web", "-p", "0:80")
    islet("app", "create", "web", "nginx", "--image-mb", "768", "--data-mb", "64")
    started = islet("realm", "start", "web")
    port = islet("realm", "inspect", "web", "--json").json()["publish"][0]["host_port"]
    assert wait_until(lambda: fetch(port), f"nginx answers ({started.err[-300:]})", 90) == PAGE

    islet("realm", "reboot", "web")
    assert wait_until(lambda: fetch(port), "nginx answers after a reboot", 90) == PAGE
    islet("realm", "stop", "web")
