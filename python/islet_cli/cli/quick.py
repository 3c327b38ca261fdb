"""`islet rim compute [--json] [--threads N] -- run ARGS…`, without the parser of the whole command line.

Importing that parser takes longer than measuring a realm. Only what succeeds is answered here; any other
form, and every error, is left to the command itself, which then starts from the beginning.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from islet_cli.rim.measure import Measurement


def answer(arguments: list[str]) -> bool:
    """Measure and print if `arguments` are of the plain form; False if nothing was done."""
    form = _plain(arguments)
    if form is None:
        return False
    from islet_cli.errors import IsletError
    from islet_cli.rim.measure import measure_arguments

    as_json, threads, words = form
    try:
        measurement = measure_arguments(words, threads=threads)
    except IsletError:
        return False
    if measurement.dump_dtb is not None:
        return False
    try:
        _show(measurement, as_json)
    except BrokenPipeError:
        sys.exit(141)
    return True


def _show(measurement: Measurement, as_json: bool) -> None:
    if not as_json:
        print(measurement.text, flush=True)
        return
    import json

    json.dump(measurement.to_json(), sys.stdout, indent=2, ensure_ascii=False)
    print(flush=True)


def _plain(arguments: list[str]) -> tuple[bool, int | None, list[str]] | None:
    """Whether to print JSON, the number of threads, and the words after `run`; None for any other form."""
    if arguments[:2] != ["rim", "compute"] or "--" not in arguments:
        return None
    end = arguments.index("--")
    options, words = arguments[2:end], arguments[end + 1 :]
    if words[:2] == ["lkvm", "run"]:
        words = words[1:]
    if words[:1] != ["run"]:
        return None
    as_json, threads = False, None
    while options:
        option = options.pop(0)
        if option == "--json":
            as_json = True
        elif option == "--threads" and options and options[0].isascii() and options[0].isdigit() and int(options[0]):
            threads = int(options.pop(0))
        else:
            return None
    return as_json, threads, words[1:]
