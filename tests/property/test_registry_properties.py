"""Parsers of untrusted input: ranges, request paths, addresses, certificates."""

from __future__ import annotations

import asyncio
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from islet_cli import _native
from islet_cli.errors import InputError, VerificationError
from islet_cli.registry.app import RegistryApp
from islet_cli.registry.catalogue import Catalogue
from islet_cli.registry.client.address import parse_address
from islet_cli.registry.log import printable, render
from islet_cli.registry.ranges import UnsatisfiableError, none_match, parse_range

SIZES = st.integers(0, 50)


def reference(first: int | None, last: int | None, size: int) -> bytes | None:
    """The bytes that a range names, the slow way; None when there are none (RFC 9110 14.1.2)."""
    data = bytes(range(size))
    if first is None:
        assert last is not None
        return data[max(0, size - last) :] or None
    if last is not None and last < first:
        return None
    return data[first : None if last is None else last + 1] or None


@given(first=st.none() | SIZES, last=st.none() | SIZES, size=SIZES)
def test_ranges_name_the_bytes_of_the_rfc(first: int | None, last: int | None, size: int) -> None:
    if first is None and last is None:
        assert parse_range("bytes=-", size) is None
        return
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    expected = reference(first, last, size)
    if expected is None:
        with pytest.raises(UnsatisfiableError):
            parse_range(header, size)
        return
    part = parse_range(header, size)
    assert part is not None
    assert bytes(range(size))[part.offset : part.offset + part.length] == expected


@given(header=st.text(max_size=60), size=st.integers(0, 1 << 62))
def test_any_range_header_stays_inside_the_blob(header: str, size: int) -> None:
    for text in (header, f"bytes={header}"):
        try:
            part = parse_range(text, size)
        except UnsatisfiableError:
            continue
        assert part is None or (part.offset >= 0 and part.length > 0 and part.offset + part.length <= size)


@given(header=st.text(max_size=60))
def test_if_none_match_never_fails(header: str) -> None:
    assert none_match(header, '"x"') in (True, False)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> RegistryApp:
    root = tmp_path_factory.mktemp("store")
    (root / "file").write_text("not an application")
    return RegistryApp(Catalogue(root))


def ask(app: RegistryApp, method: str, raw_path: bytes, query: bytes) -> int:
    """The status of one request, the ASGI way."""
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http",
        "method": method,
        "path": raw_path.decode("latin-1"),
        "raw_path": raw_path,
        "query_string": query,
        "headers": [(b"host", b"x")],
        "server": ("x", 80),
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    status: int = sent[0]["status"]
    return status


PIECES = st.sampled_from(
    ["/", "v2", "..", ".", "%2f", "%00", "app", "blobs", "manifests", "tags/list", "uploads", "x:y"]
)
PATHS = st.lists(PIECES | st.text(string.printable, max_size=8), max_size=12).map("".join)


@given(path=PATHS, query=st.binary(max_size=20), method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "X"]))
def test_no_path_is_served_from_an_empty_store_or_fails(app: RegistryApp, path: str, query: bytes, method: str) -> None:
    raw = ("/v2/" + path).encode("latin-1", "replace")
    status = ask(app, method, raw, query)
    assert status in (400, 404, 405) or (status == 200 and (raw == b"/v2/" or b"/referrers/" in raw))


@given(text=st.text(max_size=80))
def test_addresses_are_read_or_refused(text: str) -> None:
    try:
        address = parse_address(text, "none")
    except InputError:
        return
    assert parse_address(str(address), "none") == address
    assert not set(address.host) & set("/@?# \r\n")


@given(data=st.binary(max_size=400))
def test_any_certificate_is_read_or_refused(data: bytes) -> None:
    with pytest.raises(VerificationError) as caught:
        _native.ratls.certificate_evidence(data)
    assert caught.value.code in ("certificate", "no-token")


JSON = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(event=st.dictionaries(st.sampled_from(["time", "peer", "code", "reason", "realm"]), JSON), kind=st.text())
def test_any_event_is_shown_without_control_characters(event: dict[str, Any], kind: str) -> None:
    assert render(event | {"event": kind}).isprintable()
    assert render(event | {"event": "admitted"}).isprintable()


@given(text=st.text())
def test_printable_text_stays_as_it_is(text: str) -> None:
    assert printable(text).isprintable()
    if text.isprintable() and len(text) <= 600:
        assert printable(text) == text


def test_the_store_is_below_its_root(tmp_path: Path) -> None:
    assert Catalogue(tmp_path).find("../" + tmp_path.name) is None
