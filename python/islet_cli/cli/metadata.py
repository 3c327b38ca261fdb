"""`islet metadata`: the realm metadata block."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from islet_cli.cli.common import DebugOption, JsonOption, note, show

app = typer.Typer(
    help="The realm metadata block: what lets sealing keys survive an update.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Input = Annotated[Path, typer.Option("-i", "--input", help="The block, 432 bytes.")]


@app.command()
def create(
    manifest: Annotated[Path, typer.Option("-m", "--manifest", help="YAML: realm_id, version, svn, rim, hash_algo.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where the block goes.")] = None,
    key: Annotated[Path | None, typer.Option("-k", "--key", help="P-384 private key, SEC1 or PKCS#8.")] = None,
    public_key: Annotated[
        Path | None,
        typer.Option("--public-key", help="With --tbs-out or --signature: the signer, when -k is elsewhere."),
    ] = None,
    tbs_out: Annotated[
        Path | None, typer.Option("--tbs-out", help="Write the 336 bytes to be signed elsewhere, and no block.")
    ] = None,
    signature: Annotated[
        Path | None, typer.Option("--signature", help="Take the signature made elsewhere (DER, or r || s).")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict/--no-strict", help="Refuse identifiers that the monitor refuses.")
    ] = True,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Make and sign a block."""
    from islet_cli.errors import InputError
    from islet_cli.fsutil import read_file, write_atomic
    from islet_cli.metadata import block, dump
    from islet_cli.metadata import create as making

    content = making.parse_manifest(read_file(manifest, limit=making.MAX_MANIFEST + 1), what=str(manifest))
    for warning in making.warnings(content):
        note(f"warning: {warning}")
    if tbs_out is not None or signature is not None:
        region = making.signed_region(content, _signer(key, public_key), strict=strict)
        if tbs_out is not None:
            write_atomic(tbs_out, region, mode=0o644)
            show({"tbs": str(tbs_out), "size": len(region)}, f"to be signed: {tbs_out}", as_json=as_json)
            return
        assert signature is not None
        data = making.assemble(region, read_file(signature, limit=1024))
    elif key is None:
        raise InputError("no signing key", code="usage", hint="pass -k KEY, or --tbs-out and --signature")
    else:
        from islet_cli.metadata.keys import load_signing_key

        data = making.create(content, load_signing_key(key), strict=strict)
    if output is None:
        raise InputError("no output file", code="usage", hint="pass -o FILE")
    write_atomic(output, data, mode=0o644)
    made = block.parse(data)
    show({"file": str(output), **made.to_json()}, f"{dump.dump_text(made)}written:    {output}", as_json=as_json)


def _signer(key: Path | None, public_key: Path | None) -> bytes:
    """The signer's point, X || Y, from its public key file or its private key."""
    from islet_cli.errors import InputError

    if public_key is not None:
        from islet_cli.keys.ecc import load_public

        return load_public(public_key).sec1[1:]
    if key is not None:
        from islet_cli.metadata.keys import load_signing_key

        return load_signing_key(key).public.sec1[1:]
    raise InputError(
        "whose signature? the signer's public key is part of what is signed", code="usage", hint="pass --public-key PUB"
    )


@app.command()
def verify(
    file: Input,
    public_key: Annotated[
        Path | None,
        typer.Option("--public-key", help="The signer that is expected; the block alone proves no authority."),
    ] = None,
    min_svn: Annotated[int | None, typer.Option("--min-svn", min=0, help="Refuse blocks with a lower svn.")] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Check a block's signature, and what the monitor would say to it."""
    from islet_cli.fsutil import read_file
    from islet_cli.metadata.verify import verify_block

    pinned = None if public_key is None else _signer(None, public_key)
    verified = verify_block(read_file(file, limit=1 << 20), public_key=pinned, min_svn=min_svn, what=str(file))
    if public_key is None:
        note("note: the signer was not compared with any key; pass --public-key to do so")
    block = verified.block
    text = (
        f"signature: valid, by {block.public_key[:8].hex()}…\nrealm:     {_printable(block.realm_id)}, svn {block.svn}"
    )
    show(
        {"valid": True, "monitor": verified.monitor_result, "block": block.to_json()},
        f"{text}\nmonitor:   {verified.monitor_result}",
        as_json=as_json,
    )


@app.command()
def dump(
    file: Input,
    hexdump: Annotated[bool, typer.Option("--hexdump", help="Add the bytes.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show a block's fields. The signature is not checked."""
    from islet_cli.fsutil import read_file
    from islet_cli.metadata import block as blocks
    from islet_cli.metadata import dump as dumping

    data = read_file(file, limit=1 << 20)
    parsed = blocks.parse(data, what=str(file))
    text = _printable(dumping.dump_text(parsed).rstrip("\n"))
    if hexdump:
        text += "\n-- hexdump --\n" + dumping.hexdump(data[: blocks.BLOCK_SIZE]).rstrip("\n")
    show(parsed.to_json(), text, as_json=as_json)


def _printable(text: str) -> str:
    """Control characters as escapes: the block is not trusted and this may be a terminal."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else f"\\x{ord(character):02x}"
        for character in text
    )
