"""`islet token`: CCA attestation tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from islet_cli.cli.common import DebugOption, JsonOption, WorkspaceOption, note, show, workspace_if_any

if TYPE_CHECKING:
    from islet_cli.attestation.cpak import Cpak
    from islet_cli.attestation.reference import ReferenceValues
    from islet_cli.attestation.token import Token
    from islet_cli.config import Workspace

app = typer.Typer(help="CCA attestation tokens: show, verify.", no_args_is_help=True, rich_markup_mode=None)

File = Annotated[Path, typer.Argument(metavar="FILE", help="The token, CBOR.")]


def _read(file: Path) -> bytes:
    from islet_cli.attestation.cbor import MAX_SIZE
    from islet_cli.fsutil import read_file

    return read_file(file, limit=MAX_SIZE)


@app.command("show")
def show_token(file: File, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Show the claims of a token. Nothing is verified."""
    from islet_cli.attestation.errors import TokenError
    from islet_cli.attestation.token import parse_token
    from islet_cli.attestation.verify import EMULATED_WARNING, is_emulated
    from islet_cli.errors import InputError

    try:
        token = parse_token(_read(file))
    except TokenError as error:
        raise InputError(f"{file}: {error.message}", code=error.code, hint=error.hint) from error
    emulated = is_emulated(token.platform)
    value = {**token.to_json(), "emulated": emulated}
    lines = _lines(token)
    if emulated:
        value["warning"] = EMULATED_WARNING
        lines.append(EMULATED_WARNING)
    note("note: nothing was verified; use `islet token verify`")
    show(value, "\n".join(lines), as_json=as_json)


def _lines(token: Token) -> list[str]:
    from islet_cli.attestation import token as claims

    lines = ["platform token"]
    lines += _claim_lines(token.platform.claims, claims.PLATFORM_CLAIMS, claims.PLATFORM_MANDATORY)
    for index, component in enumerate(token.platform.components):
        lines.append(f"  software component {index}")
        lines += [f"    {claims.COMPONENT_CLAIMS[key][0]:<26} {_text(value)}" for key, value in component.items()]
    lines.append("realm token")
    lines += _claim_lines(token.realm.claims, claims.REALM_CLAIMS, claims.REALM_MANDATORY)
    lines += [f"  {f'REM{index}':<28} {value.hex()}" for index, value in enumerate(token.realm.rems)]
    return lines


def _claim_lines(present: Any, known: Any, mandatory: tuple[int, ...]) -> list[str]:
    lines = [f"  {known[key][0]:<28} {_text(value)}" for key, value in present.items()]
    return lines + [f"* Missing {known[key][0]} ({key})" for key in mandatory if key not in present]


def _text(value: Any) -> str:
    """Bytes in hex, numbers in hex, text quoted with escapes: the token is not trusted."""
    if isinstance(value, bytes):
        return value.hex()
    return f"{value:#x}" if isinstance(value, int) else ascii(value)


@app.command()
def verify(
    file: File,
    cpak: Annotated[
        list[str] | None,
        typer.Option("--cpak", metavar="[emulated:]FILE", help="A pinned platform key (default: the workspace's)."),
    ] = None,
    reference: Annotated[
        list[Path] | None,
        typer.Option("--reference", metavar="FILE", help="Reference values (default: what the workspace published)."),
    ] = None,
    challenge: Annotated[
        str | None, typer.Option("--challenge", metavar="HEX", help="The realm challenge that is expected, 64 bytes.")
    ] = None,
    host_challenge: Annotated[
        str | None,
        typer.Option("--host-challenge", metavar="HEX", help="What `islet realm token` was asked with, 64 bytes."),
    ] = None,
    allow_emulated: Annotated[
        bool, typer.Option("--allow-emulated", help="Accept evidence of an emulated platform. Development only.")
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Verify a token: signatures, platform key, freshness, measurements."""
    from islet_cli.attestation.errors import TokenError
    from islet_cli.attestation.verify import EMULATED_WARNING, verify_token

    found = workspace_if_any(workspace)
    expected = _challenge(challenge, host_challenge)
    token, pins, documents = _read(file), _cpaks(cpak or [], found), _references(reference or [], found)
    emulated = allow_emulated or (found is not None and found.settings.registry.allow_emulated)
    try:
        verdict = verify_token(token, cpaks=pins, challenge=expected, references=documents, allow_emulated=emulated)
    except TokenError as error:
        raise TokenError(f"{file}: {error.message}", code=error.code, hint=error.hint) from error
    if expected is None:
        note("note: freshness was not checked; pass --challenge or --host-challenge")
    value = verdict.to_json()
    lines = [
        "accepted",
        f"platform:  {value['platform_key']}, lifecycle {value['lifecycle']:#x}",
        f"realm:     {value['reference']}" + (f" ({value['reference_kind']})" if value["reference_kind"] else ""),
        f"RIM:       {value['rim']}",
        *(f"REM{index}:      {rem}" for index, rem in enumerate(value["rems"]) if rem.strip("0")),
        f"challenge: {'as expected' if value['challenge_checked'] else 'not checked'}",
    ]
    if verdict.emulated:
        lines.append(EMULATED_WARNING)
    show(value, "\n".join(lines), as_json=as_json)


def _challenge(challenge: str | None, host_challenge: str | None) -> bytes | None:
    from islet_cli.attestation import challenge as challenges
    from islet_cli.errors import InputError

    if challenge is not None and host_challenge is not None:
        raise InputError("give either --challenge or --host-challenge", code="usage")
    text = challenge if challenge is not None else host_challenge
    if text is None:
        return None
    try:
        data = bytes.fromhex(text)
    except ValueError:
        raise InputError(f"challenge {text[:20]!r}… is not hexadecimal", code="usage") from None
    if len(data) != challenges.CHALLENGE_SIZE:
        raise InputError(f"the challenge has {len(data)} bytes, not {challenges.CHALLENGE_SIZE}", code="usage")
    return challenges.host_challenge(data) if host_challenge is not None else data


def _cpaks(pins: list[str], workspace: Workspace | None) -> list[Cpak]:
    """The keys named on the command line, else those of the workspace."""
    from islet_cli.attestation.cpak import load_cpak, parse_pin

    if pins or workspace is None:
        return [load_cpak(path, kind) for kind, path in map(parse_pin, pins)]
    return [load_cpak(workspace.path(pin.file), pin.kind) for pin in workspace.settings.registry.cpak]


def _references(files: list[Path], workspace: Workspace | None) -> list[ReferenceValues]:
    """The documents named on the command line, else everything that the workspace publishes and admits."""
    from islet_cli.attestation.reference import load

    if not files and workspace is not None:
        patterns = [".islet/published/*/reference-*.json", *workspace.settings.registry.reference]
        files = sorted({path for pattern in patterns for path in _glob(workspace.root, pattern)})
    return [load(path) for path in files]


def _glob(root: Path, pattern: str) -> list[Path]:
    import glob

    # An absolute pattern is as good as one relative to islet.toml.
    return [Path(path) for path in glob.glob(str(root / pattern))]  # noqa: PTH207
