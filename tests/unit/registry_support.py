"""What the registry's tests share: small images, certificates, evidence of an emulated platform, a server."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from islet_cli.attestation import cose
from islet_cli.attestation.reference import ReferenceValues
from islet_cli.attestation.token import REALM_PROFILE_1_0
from islet_cli.developer import certificates
from islet_cli.oci.descriptor import MEDIA_CONFIG, MEDIA_INDEX, MEDIA_LAYER, MEDIA_MANIFEST
from islet_cli.platform import evidence, hes
from islet_cli.registry.admission import Policy
from islet_cli.registry.client import TlsOptions
from islet_cli.registry.server import RegistryServer, ServeOptions, running

RIM = bytes(range(32))
ZERO_REMS = (bytes(32),) * 4


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def describe(media_type: str, data: bytes, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}


@dataclass
class Image:
    """One image in memory."""

    layers: list[bytes]
    config: bytes
    manifest: bytes
    architecture: str = "arm64"

    @property
    def blobs(self) -> list[bytes]:
        return [*self.layers, self.config, self.manifest]


def image(*layers: bytes, label: str | None = None, architecture: str = "arm64") -> Image:
    """An image whose layers are any bytes: nothing here unpacks them."""
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Labels": {"io.islet.application": label}} if label else {},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MEDIA_MANIFEST,
            "config": describe(MEDIA_CONFIG, config),
            "layers": [describe(MEDIA_LAYER, layer) for layer in layers],
        }
    ).encode()
    return Image(list(layers), config, manifest, architecture)


def write_layout(path: Path, tags: dict[str, Image]) -> Path:
    """A layout directory with one tag an image."""
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for one in tags.values():
        for data in one.blobs:
            (blobs / hashlib.sha256(data).hexdigest()).write_bytes(data)
    manifests = [
        describe(MEDIA_MANIFEST, one.manifest, annotations={"org.opencontainers.image.ref.name": tag})
        for tag, one in tags.items()
    ]
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    index = {"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": manifests}
    (path / "index.json").write_text(json.dumps(index))
    return path


@dataclass
class Platform:
    """An emulated platform with one realm; makes its tokens."""

    hes: hes.Hes
    rim: bytes = RIM
    rems: tuple[bytes, bytes, bytes, bytes] = ZERO_REMS
    challenges: list[bytes] = field(default_factory=list)

    def token(self, challenge: bytes) -> bytes:
        self.challenges.append(challenge)
        rak = self.hes.delegated_key()
        key = cose.key_to_cose(rak.public.sec1)
        claims = evidence.RealmClaims(
            challenge=challenge,
            profile=REALM_PROFILE_1_0,
            rpv=bytes(64),
            rim=self.rim,
            rems=self.rems,
            hash_algo="sha-256",
            public_key=key,
        )
        return evidence.wrap(self.hes.platform_token(key), evidence.sign(claims.encode(), rak))


def write_reference(path: Path, rim: bytes = RIM, rems: tuple[Any, ...] = (ZERO_REMS,), kind: Any = "pull") -> Path:
    path.write_bytes(ReferenceValues(rim, rems, "sha-256", name="testrealm", kind=kind).to_bytes())
    return path


@dataclass
class Setting:
    """A directory with certificates, a platform identity, reference values and an empty store."""

    directory: Path
    platform: Platform

    @property
    def store(self) -> Path:
        return self.directory / "store"

    @property
    def access_log(self) -> Path:
        return self.directory / "access.jsonl"

    def options(self, tls: str = "ra-tls", *, allow_emulated: bool = True, **changes: Any) -> ServeOptions:
        policy = Policy(
            references=[str(self.directory / "reference-*.json")],
            cpaks=[("emulated", self.directory / "platform" / "cpak.bin")],
            allow_emulated=allow_emulated,
        )
        given: dict[str, Any] = {
            "root": self.store,
            "listen": "127.0.0.1:0",
            "tls": tls,
            "certificate": self.directory / "server.crt",
            "key": self.directory / "server.key",
            "policy": policy,
            "access_log": self.access_log,
        }
        return ServeOptions(**(given | changes))

    def tls(self, provider: Any = None) -> TlsOptions:
        """Options of an attesting client; the default provider is the genuine platform."""
        return TlsOptions("ra-tls", self.directory / "ca.crt", provider or self.platform.token)

    @contextlib.contextmanager
    def serving(self, tls: str = "ra-tls", **changes: Any) -> Iterator[RegistryServer]:
        with running(self.options(tls, **changes), self.directory) as server:
            yield server

    def events(self, count: int = 1) -> list[dict[str, Any]]:
        """The access log, once it has `count` lines (the listener writes it beside the handshake)."""
        import time

        from islet_cli.registry import log

        end = time.monotonic() + 10
        while len(events := log.read(self.access_log)) < count and time.monotonic() < end:
            time.sleep(0.005)
        return events


def make_setting(directory: Path) -> Setting:
    (directory / "store").mkdir()
    ca_key, server_key = certificates.generate_key(), certificates.generate_key()
    ca = certificates.issue_ca(ca_key, "test CA")
    server = certificates.issue_server(server_key, ca, ca_key, certificates.DEFAULT_NAMES)
    (directory / "ca.crt").write_bytes(certificates.certificate_pem(ca))
    (directory / "server.crt").write_bytes(certificates.certificate_pem(server))
    (directory / "server.key").write_bytes(certificates.key_pem(server_key))
    platform = Platform(hes.create_identity(directory / "platform"))
    write_reference(directory / "reference-pull.json")
    return Setting(directory, platform)


@dataclass
class Answer:
    """One HTTP answer."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def code(self) -> str:
        """The first error code of an OCI error body."""
        assert self.headers["Content-Type"] == "application/json"
        code: str = json.loads(self.body)["errors"][0]["code"]
        return code


def request(address: str, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Answer:
    """One request over plain HTTP, the path sent exactly as given."""
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for key, value in (headers or {}).items():
            connection.putheader(key, value)
        if body or method in ("POST", "PUT", "PATCH"):
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body or None)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()
