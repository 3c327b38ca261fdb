"""The `islet` command: lazily loaded command groups and the one place where errors become exit codes."""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from islet_cli.errors import IsletError

# name -> (module under islet_cli.cli, attribute, one-line help). An attribute that is a Typer object is a
# group of commands; a function is a single command.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "init": ("workspace", "init", "Make a workspace: keys, certificates, islet.toml, realm.toml."),
    "run": ("run", "run", "Run an application in a realm: build, sign, publish, provision, start, stream."),
    "ps": ("run", "ps", "List what `islet run` started."),
    "logs": ("run", "logs", "Show the output of an application."),
    "stop": ("run", "stop", "Stop an application's realm."),
    "rm": ("run", "rm", "Remove an application's realm and its data."),
    "down": ("workspace", "down", "Stop every service of the workspace."),
    "demo": ("demo", "demo", "The whole story, each step named, with the refusals."),
    "doctor": ("doctor", "doctor", "What this machine has and lacks for each role."),
    "key": ("key", "app", "Keys: generate, public, show, certify, sign, verify."),
    "sign": ("sign", "sign", "Sign an OCI image."),
    "verify": ("sign", "verify", "Verify an OCI image's signature chain and digests."),
    "image": ("image", "app", "Images: build, inspect, unpack, pull."),
    "rim": ("rim", "app", "Realm initial measurement: compute, explain, diff, check, rem."),
    "metadata": ("metadata", "app", "Realm metadata block: create, verify, dump."),
    "token": ("token", "app", "CCA attestation tokens: show, verify."),
    "realm": ("realm", "app", "Realms: build, publish, create, start, stop, …"),
    "app": ("application", "app", "Applications of a realm."),
    "registry": ("registry", "app", "The application registry."),
    "platform": ("platform", "app", "The emulated platform."),
    "warden": ("warden", "app", "The host daemon that launches realms."),
    "app-manager": ("app_manager", "app_manager", "The daemon inside a realm."),
}


class LazyGroup(TyperGroup):
    """A command group whose members are imported when they are used, so that `islet --help` stays quick."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module_name, attribute, _help = entry
        target = getattr(importlib.import_module(f"islet_cli.cli.{module_name}"), attribute)
        if isinstance(target, typer.Typer):
            command: Any = typer.main.get_group(target)
        else:
            single = typer.Typer(add_completion=False, rich_markup_mode=None)
            single.command(cmd_name)(target)
            command = typer.main.get_command(single)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[2]) for name, entry in COMMANDS.items()])


# Typer's own tracebacks would print local variables, and those may hold secrets.
app = typer.Typer(
    cls=LazyGroup,
    add_completion=True,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        from islet_cli import __version__

        print(f"islet {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Provision applications into Arm CCA realms."""


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code. No traceback unless `--debug` stands among the arguments."""
    signal.signal(signal.SIGTERM, _terminated)
    arguments = sys.argv[1:] if arguments is None else arguments
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in own
    try:
        result = app(arguments, standalone_mode=False, prog_name="islet")
        return int(result) if isinstance(result, int) else 0
    except IsletError as error:
        if debug:
            raise
        _tell(f"error: {error.message}")
        if error.hint:
            _tell(f"hint: {error.hint}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except Exception as error:
        return _other(error, debug)


def _tell(line: str) -> None:
    """Print on stderr if that is possible: the exit code stands even when a log's disk is full."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr)


def _terminated(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def _other(error: Exception, debug: bool) -> int:
    """Errors of the command-line parser, and faults of our own."""
    if type(error).__name__ == "Exit":
        return int(getattr(error, "exit_code", 0))
    if type(error).__name__ == "Abort":
        return 130
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        _tell(f"error: {error.format_message()}")
        context = getattr(error, "ctx", None)
        if error.format_message().endswith("is not readable."):
            _tell("hint: check the owner and mode of that file")
        elif context is not None:
            _tell(f"hint: see {context.command_path} --help")
        return 2
    if debug:
        raise error
    _tell(f"error: internal fault: {type(error).__name__}: {error}")
    _tell("hint: run again with --debug and report what it prints")
    return 4
