"""`islet realm …`: building and publishing realm images, and the life of realms."""

from __future__ import annotations

import typer

from islet_cli.cli import realm_build, realm_life

app = typer.Typer(no_args_is_help=True, help="Realm images and realms.", rich_markup_mode=None)

for _module in (realm_build, realm_life):
    for _name, _function in _module.COMMANDS.items():
        app.command(_name)(_function)
