"""`islet doctor`."""

from __future__ import annotations

import typer

from islet_cli.cli.common import DebugOption, JsonOption, show

_MARKS = {"ok": "ok     ", "missing": "MISSING", "absent": "without"}


def doctor(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Tell what this machine has and lacks for each role, and the command that mends it."""
    from islet_cli.developer import doctor as library

    findings = library.examine()
    ready = library.ready_for_demo(findings)
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.state]}  {finding.role:<9} {finding.name:<26} {finding.detail}")
        if finding.mend and finding.state == "missing":
            lines.append(f"{'':<20}mend: {finding.mend}")
    lines.append("ready: islet demo" if ready else "not ready for the demo: mend what is MISSING")
    show({"ready": ready, "findings": [f.to_json() for f in findings]}, "\n".join(lines), as_json=as_json)
    if not ready:
        raise typer.Exit(3)
