"""`islet sign` and `islet verify`."""

from __future__ import annotations

from contextlib import ExitStack
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from islet_cli.cli.common import DebugOption, JsonOption, WorkspaceOption, note, show, workspace_if_any
from islet_cli.cli.image import Tls


class Require(str, Enum):
    """Forms of signature."""

    annotation = "annotation"
    artifact = "artifact"
    either = "either"
    both = "both"


ImageArgument = Annotated[
    str, typer.Argument(help="An OCI layout directory, an OCI archive, or docker://HOST[:PORT]/NAME:TAG.")
]
TagOption = Annotated[str | None, typer.Option("--tag", "-t", help="Tag or digest (default: the only image).")]
TlsOption = Annotated[Tls, typer.Option(help="Transport, for docker://.")]
RootCaOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="PEM of the registry's CA (default: the system's).")
]
CaPublicOption = Annotated[
    Path | None, typer.Option("--ca-pub", metavar="FILE", help="The root CA's public key (default: the workspace's).")
]


def sign(
    image: ImageArgument,
    tag: TagOption = None,
    vendor_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The vendor's private key; with --signature its public key will do."),
    ] = None,
    vendor_sig: Annotated[
        Path | None, typer.Option(metavar="SIG", help="The root CA's signature over the vendor's public key.")
    ] = None,
    ca_pub: CaPublicOption = None,
    ca_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Instead of the two: the root CA's private key (tests).")
    ] = None,
    into: Annotated[
        Path | None, typer.Option("--into", "--output", "-o", metavar="DIR", help="Write a new layout.")
    ] = None,
    application: Annotated[
        str | None, typer.Option("--app", metavar="NAME", help="Write this application name into the image first.")
    ] = None,
    tbs_out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the bytes to be signed elsewhere; sign nothing.")
    ] = None,
    signature: Annotated[
        Path | None, typer.Option(metavar="SIG", help="The DER signature that was made elsewhere.")
    ] = None,
    artifact: Annotated[
        bool, typer.Option("--artifact", help="Also add a signature artifact, which binds manifest and name.")
    ] = False,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="End of the artifact's validity, YYYY-MM-DDThh:mm:ssZ.")
    ] = None,
    tls: TlsOption = Tls.tls,
    root_ca: RootCaOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Sign an image: of a layout in place, of an archive into a new layout."""
    from islet_cli.keys.files import load_signature
    from islet_cli.progress import bar
    from islet_cli.signing.artifact import with_artifact
    from islet_cli.signing.credentials import KeyFiles, vendor_of
    from islet_cli.signing.source import local_image, require_destination, sign_source

    local = partial(local_image, image, tls=tls.value, root_ca=root_ca)
    if tbs_out is not None:
        with local() as path:
            _write_tbs(path, tag, application, tbs_out, as_json=as_json)
        return
    named = KeyFiles(vendor_key, vendor_sig, ca_pub, ca_key)
    vendor = vendor_of(named, workspace_if_any(workspace), signed_elsewhere=signature is not None)
    given = None if signature is None else load_signature(signature)
    require_destination(image, into)
    with bar("signing", enabled=not as_json) as report, local(report=report) as path:
        done = sign_source(path, tag, vendor, into=into, application=application, signature=given, report=report)
    if artifact:
        done = with_artifact(done, vendor, expires=expires)
    for warning in done.warnings:
        note(f"warning: {warning}")
    state = "signed" if done.changed else "was signed so already"
    text = f"{done.layout}: {done.reference} {state}\nmanifest: {done.manifest_digest}\nvendor: {done.vendor}"
    show(done.to_json(), text, as_json=as_json)


def _write_tbs(image: Path, tag: str | None, application: str | None, output: Path, *, as_json: bool) -> None:
    from islet_cli.fsutil import write_atomic
    from islet_cli.signing.source import bytes_to_sign

    data = bytes_to_sign(image, tag, application)
    write_atomic(output, data, mode=0o644)
    text = f"{output}: {len(data)} bytes to be signed with ECDSA P-384, SHA-384, DER"
    show({"tbs": str(output), "size": len(data)}, text, as_json=as_json)


def verify(
    image: ImageArgument,
    tag: TagOption = None,
    ca_pub: CaPublicOption = None,
    application: Annotated[
        str | None, typer.Option("--app", metavar="NAME", help="Require that the image is signed for this name.")
    ] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also decompress every layer and compare its diff_id.")] = False,
    deny: Annotated[
        Path | None, typer.Option(metavar="FILE", help="SHA-256 values of revoked vendor keys and configurations.")
    ] = None,
    tls: TlsOption = Tls.tls,
    root_ca: RootCaOption = None,
    require: Annotated[Require, typer.Option(help="Which form of signature must hold.")] = Require.annotation,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Verify an image: its whole signature chain and the digest of every blob."""
    from islet_cli.errors import IsletError
    from islet_cli.progress import bar
    from islet_cli.signing.credentials import ca_of
    from islet_cli.signing.image import load_deny_list, verify_required
    from islet_cli.signing.source import local_image, opened_layout, reference_of

    ca = ca_of(ca_pub, workspace_if_any(workspace))
    try:
        denied = frozenset() if deny is None else load_deny_list(deny)
        with bar("verifying", enabled=not as_json) as report, ExitStack() as stack:
            path = stack.enter_context(local_image(image, tls=tls.value, root_ca=root_ca, report=report))
            layout = stack.enter_context(opened_layout(path))
            reference = reference_of(layout, tag)
            done = verify_required(
                layout, reference, ca, require.value, name=application, deep=deep, deny=denied, report=report
            )
    except IsletError as error:
        if as_json:
            show({"ok": False, "error": error.to_json()}, "", as_json=True)
        raise
    result: dict[str, Any] = {"ok": True, **done.to_json()}
    lines = [f"{image}: {done.reference} verified", f"manifest: {done.manifest_digest}"]
    lines += [f"vendor: {done.vendor.fingerprint}", f"application: {done.application or '(no label)'}"]
    lines.append(f"security version: {done.security_version}")
    show(result, "\n".join(lines), as_json=as_json)
