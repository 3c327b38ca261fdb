"""An ordinary client, skopeo, pushes to the registry and pulls from it, over plain HTTP and TLS."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import bcrypt
import pytest

from islet_cli.developer import certificates
from islet_cli.oci import layout as layouts
from islet_cli.oci.build import build_image
from islet_cli.registry.push_listener import PushOptions
from islet_cli.registry.server import ServeOptions, running

pytestmark = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")


def skopeo(*arguments: str) -> str:
    result = subprocess.run(["skopeo", *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def serve_options(directory: Path, tls: str) -> ServeOptions:
    (directory / "store").mkdir()
    (directory / "certs").mkdir()
    ca_key, key = certificates.generate_key(), certificates.generate_key()
    ca = certificates.issue_ca(ca_key, "test CA")
    server = certificates.issue_server(key, ca, ca_key, certificates.DEFAULT_NAMES)
    (directory / "certs" / "ca.crt").write_bytes(certificates.certificate_pem(ca))
    (directory / "server.crt").write_bytes(certificates.certificate_pem(server))
    (directory / "server.key").write_bytes(certificates.key_pem(key))
    users = directory / "htpasswd"
    users.write_bytes(b"me:" + bcrypt.hashpw(b"secret", bcrypt.gensalt(4)) + b"\n")
    chain, private = directory / "server.crt", directory / "server.key"
    push = PushOptions("127.0.0.1:0", tls, chain, private, users)  # type: ignore[arg-type]
    return ServeOptions(directory / "store", "127.0.0.1:0", tls, chain, private, push=push)  # type: ignore[arg-type]


@pytest.mark.parametrize("tls", ["none", "tls"])
def test_skopeo_pushes_and_pulls(tmp_path: Path, tls: str) -> None:
    program = tmp_path / "hello"
    program.write_text("#!/bin/sh\necho hello\n")
    program.chmod(0o755)
    built = build_image(program, tmp_path / "in", name="team/app", tag="v1")
    verify = "true" if tls == "tls" else "false"
    certs = str(tmp_path / "certs")
    with running(serve_options(tmp_path, tls), tmp_path) as server:
        there = [f"--dest-tls-verify={verify}", f"--dest-cert-dir={certs}", "--dest-creds=me:secret"]
        source = f"oci:{tmp_path / 'in'}:v1"
        for goal in ("team/app:v1", "team/app:v2", "team/other:v1"):
            skopeo("copy", "--insecure-policy", *there, source, f"docker://{server.push_address}/{goal}")
        wrong = ["skopeo", "copy", "--insecure-policy", *there[:2], "--dest-creds=me:wrong", source]
        assert subprocess.run([*wrong, f"docker://{server.push_address}/x:1"], capture_output=True).returncode != 0
        here = [f"--tls-verify={verify}", f"--cert-dir={certs}"]
        listed = json.loads(skopeo("list-tags", *here, f"docker://{server.address}/team/app"))
        assert listed["Tags"] == ["v1", "v2"]
        pulled = [f"--src-tls-verify={verify}", f"--src-cert-dir={certs}"]
        skopeo(
            "copy", "--insecure-policy", *pulled, f"docker://{server.address}/team/app:v1", f"oci:{tmp_path / 'out'}:v1"
        )
        assert layouts.load(tmp_path / "out").tags["v1"].digest == built.manifest_digest
        skopeo("delete", *here, "--creds=me:secret", f"docker://{server.push_address}/team/other:v1")
        assert layouts.load(tmp_path / "store" / "team" / "other").tags == {}
        # What an ordinary client pushed is signed in place, and our own client takes it from there.
        _sign_in_place(tmp_path)
        assert layouts.load(tmp_path / "store" / "team" / "app").tags["v1"].digest != built.manifest_digest


def _sign_in_place(directory: Path) -> None:
    def islet(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "islet_cli", *arguments], cwd=directory, check=True, capture_output=True)

    for name in ("ca.key", "vendor.key"):
        islet("key", "generate", "-o", name)
    islet("sign", "store/team/app", "--tag", "v1", "--vendor-key", "vendor.key", "--ca-key", "ca.key")
