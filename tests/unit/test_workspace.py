"""What `islet init` makes, and which workspaces are refused."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from cryptography import x509

from islet_cli.config import Workspace
from islet_cli.developer.workspace import make_workspace
from islet_cli.errors import InputError, UnavailableError
from islet_cli.keys.ecc import load_private, load_public


def test_init_makes_five_separate_keys_closed_to_others(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w").workspace
    keys = workspace.keys_dir
    fingerprints = {load_private(keys / name).public.fingerprint for name in ("root-ca.prv", "vendor.prv", "realm.pem")}
    assert len(fingerprints) == 3
    for secret in [*keys.glob("*.prv"), keys / "realm.pem", keys / "registry-ca.key"]:
        assert secret.stat().st_mode & 0o777 == 0o600, secret
    assert workspace.state.stat().st_mode & 0o777 == 0o700
    load_public(keys / "root-ca.pub").verify((keys / "vendor.pub.sig").read_bytes(), (keys / "vendor.pub").read_bytes())


def test_init_issues_the_registry_certificate_for_the_names_realms_use(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, registry_names=["registry.example"]).workspace
    certificate = x509.load_pem_x509_certificate(workspace.path(workspace.settings.registry.cert).read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "registry.example"]
    addresses = set(names.get_values_for_type(x509.IPAddress))
    assert addresses == {ipaddress.ip_address(a) for a in ("127.0.0.1", "::1", "10.0.2.100", "192.168.100.1")}


def test_init_does_not_touch_an_existing_workspace(tmp_path: Path) -> None:
    make_workspace(tmp_path)
    key = (tmp_path / ".islet/keys/vendor.prv").read_bytes()
    with pytest.raises(InputError, match="already a workspace"):
        make_workspace(tmp_path)
    assert (tmp_path / ".islet/keys/vendor.prv").read_bytes() == key


def test_an_interrupted_init_goes_on_with_the_keys_that_are_there(tmp_path: Path) -> None:
    make_workspace(tmp_path)
    key = (tmp_path / ".islet/keys/vendor.prv").read_bytes()
    (tmp_path / "islet.toml").unlink()
    make_workspace(tmp_path)
    assert (tmp_path / ".islet/keys/vendor.prv").read_bytes() == key


def test_the_nearest_workspace_upward_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISLET_WORKSPACE", raising=False)
    make_workspace(tmp_path)
    below = tmp_path / "a/b"
    below.mkdir(parents=True)
    assert Workspace.find(start=below).root == tmp_path.resolve()


def test_no_workspace_names_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISLET_WORKSPACE", raising=False)
    with pytest.raises(UnavailableError) as caught:
        Workspace.find(start=tmp_path)
    assert caught.value.hint == "run: islet init"


def test_a_workspace_writable_by_others_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "w"
    make_workspace(root)
    root.chmod(0o777)
    with pytest.raises(InputError) as caught:
        Workspace.load(root)
    assert caught.value.code == "not-private"


@pytest.mark.parametrize(
    "text", ["schema = 2\n", "schema = 1\nfrobnicate = 1\n", "schema = 1\n[run]\ndata_mb = 0\n", "x ="]
)
def test_a_bad_islet_toml_is_named(tmp_path: Path, text: str) -> None:
    make_workspace(tmp_path)
    (tmp_path / "islet.toml").write_text(text)
    with pytest.raises(InputError, match=r"islet\.toml: "):
        Workspace.load(tmp_path)


@pytest.mark.parametrize("name", ["", "UPPER", "a" * 33, "-x", "a/b"])
def test_bad_realm_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        make_workspace(tmp_path / "w", realm=name)
    assert not (tmp_path / "w").exists()
