"""`islet key …`: P-384 keys and detached signatures."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from islet_cli.cli.common import DebugOption, JsonOption, show

app = typer.Typer(no_args_is_help=True, help="P-384 keys and detached signatures.", rich_markup_mode=None)


class Form(str, Enum):
    """How a key is written."""

    der = "der"
    pem = "pem"


FormOption = Annotated[Form, typer.Option("--format", help="DER or PEM.")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="What to write.")]


@app.command()
def generate(
    output: OutputOption,
    form: FormOption = Form.der,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Make a P-384 private key (SEC1, mode 0600)."""
    from islet_cli.keys import ecc, files

    key = ecc.generate()
    files.write_private(output, key, form.value, force=force)
    fingerprint = key.public.fingerprint
    show({"file": str(output), "fingerprint": fingerprint}, f"{output}: {fingerprint}", as_json=as_json)


@app.command()
def public(
    source: Annotated[Path, typer.Option("--input", "-i", metavar="PRIV", help="A private key.")],
    output: OutputOption,
    form: FormOption = Form.der,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write the public key (SPKI) of a private key."""
    from islet_cli.keys import ecc, files

    key = ecc.load_private(source).public
    files.write_public(output, key, form.value)
    show({"file": str(output), "fingerprint": key.fingerprint}, f"{output}: {key.fingerprint}", as_json=as_json)


@app.command("show")
def show_key(
    file: Annotated[Path, typer.Argument(help="A private or public key.")],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show type, curve and fingerprint of a key, never its private part."""
    from islet_cli.keys import files

    facts = files.describe(file)
    text = f"type: {facts['type']}\ncurve: {facts['curve']}\nfingerprint: {facts['fingerprint']}"
    show(facts, text, as_json=as_json)


@app.command()
def certify(
    ca: Annotated[Path, typer.Option("--key", "-k", metavar="CA_PRIV", help="The root CA's private key.")],
    vendor: Annotated[Path, typer.Option("--input", "-i", metavar="VENDOR_PUB", help="The vendor's public key.")],
    output: OutputOption,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Let the root CA sign a vendor's public key."""
    from islet_cli.fsutil import write_atomic
    from islet_cli.keys import ecc

    authority, key = ecc.load_private(ca), ecc.load_public(vendor)
    write_atomic(output, authority.sign(key.spki), mode=0o644)
    value = {"file": str(output), "vendor": key.fingerprint, "ca": authority.public.fingerprint}
    show(value, f"{output}: vendor {key.fingerprint} certified", as_json=as_json)


@app.command()
def sign(
    key: Annotated[Path, typer.Option("--key", "-k", metavar="PRIV", help="A private key.")],
    file: Annotated[Path, typer.Option("--file", "-f", help="What to sign.")],
    signature: Annotated[Path, typer.Option("--signature", "-s", metavar="SIG", help="The signature to write.")],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Sign a file: deterministic ECDSA with SHA-384, DER."""
    from islet_cli.fsutil import read_file, write_atomic
    from islet_cli.keys import ecc

    signer = ecc.load_private(key)
    write_atomic(signature, signer.sign(read_file(file)), mode=0o644)
    show({"file": str(signature), "key": signer.public.fingerprint}, f"{signature}: written", as_json=as_json)


@app.command()
def verify(
    key: Annotated[Path, typer.Option("--key", "-k", metavar="PUB", help="A public key.")],
    file: Annotated[Path, typer.Option("--file", "-f", help="What was signed.")],
    signature: Annotated[Path, typer.Option("--signature", "-s", metavar="SIG", help="The signature.")],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Verify a detached signature."""
    from islet_cli.fsutil import read_file
    from islet_cli.keys import ecc, files

    signer = ecc.load_public(key)
    signer.verify(files.load_signature(signature), read_file(file))
    show({"ok": True, "key": signer.fingerprint}, f"{file}: signed by {signer.fingerprint}", as_json=as_json)
