"""The interactive client with the command names of upstream's `cmd_client`.

Each line is one command; `execute` gives back what `islet warden client` prints.

Source: upstream realm-manager, `cmd_client`.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from islet_cli.errors import InputError
from islet_cli.warden.client import WardenClient

CHALLENGE_BYTES = 64
ENDS = frozenset(("exit", "quit"))
Handler = Callable[[WardenClient, argparse.Namespace], str]


class _Parser(argparse.ArgumentParser):
    """A parser that raises instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}", code="usage", hint=f"see: {self.prog} --help")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise _HelpShown(status, message)


class _HelpShown(Exception):  # noqa: N818 - not an error
    """`--help` was printed."""


def _create_realm(client: WardenClient, options: argparse.Namespace) -> str:
    config = {
        "id": options.id,
        "machine": options.machine,
        "cpu": {"cpu": options.cpu, "cores_number": options.core_count},
        "memory": {"ram_size": options.ram_size},
        "network": {
            "vsock_cid": options.vsock_cid,
            "tap_device": options.tap_device,
            "mac_address": options.mac_address,
            "hardware_device": options.network_device,
            "remote_terminal_uri": options.remote_terminal_uri,
        },
        "kernel": {
            "kernel_path": options.kernel,
            "kernel_initramfs_path": options.kernel_initramfs,
            "kernel_cmd_params": options.kernel_options,
        },
        "metadata": options.metadata,
    }
    return f"realm {client.create_realm(config)}"


def _fetch_token(client: WardenClient, options: argparse.Namespace) -> str:
    token = client.token(options.id, _challenge(options.challenge))
    if options.output is not None:
        try:
            Path(options.output).write_bytes(token)
        except OSError as error:
            raise InputError(f"{options.output}: {error.strerror}", code="no-such-file") from error
        return f"token of {len(token)} bytes written to {options.output}"
    return f"token {token.hex()}"


def _challenge(text: str) -> bytes:
    try:
        challenge = bytes.fromhex(text)
    except ValueError:
        challenge = b""
    if len(challenge) != CHALLENGE_BYTES:
        raise InputError(f"challenge: expected {2 * CHALLENGE_BYTES} hex digits", code="challenge")
    return challenge


def _list(client: WardenClient, _options: argparse.Namespace) -> str:
    return "\n".join(map(_block, client.list())) or "no realms"


def _inspect(client: WardenClient, options: argparse.Namespace) -> str:
    return _block(client.inspect(options.id))


def _block(realm: dict[str, Any]) -> str:
    lines = [f"realm {realm['uuid']}", f"  state: {realm['state']}"]
    lines += [f"  application: {item}" for item in realm["applications"]]
    lines += [f"  network: {item['if_name']} {item['ip']}" for item in realm["network"]]
    return "\n".join(lines)


def _create_application(client: WardenClient, options: argparse.Namespace) -> str:
    uuid = client.create_application(
        options.realm_id,
        options.name,
        registry=options.image_registry,
        version=options.version,
        image_mb=options.image_storage_size_mb,
        data_mb=options.data_storage_size_mb,
    )
    return f"application {uuid}"


def _update_application(client: WardenClient, options: argparse.Namespace) -> str:
    client.update_application(
        options.realm_id,
        options.application_id,
        name=options.name,
        registry=options.image_registry,
        version=options.version,
        image_mb=options.image_storage_size_mb,
        data_mb=options.data_storage_size_mb,
    )
    return "ok"


def _on_realm(name: str) -> Handler:
    def handler(client: WardenClient, options: argparse.Namespace) -> str:
        getattr(client, name)(options.id)
        return "ok"

    return handler


def _on_application(name: str) -> Handler:
    def handler(client: WardenClient, options: argparse.Namespace) -> str:
        getattr(client, name)(options.realm_id, options.application_id)
        return "ok"

    return handler


_REALM_ID = (("-r", "--id"), {"required": True})
_APPLICATION_ID = (("-a", "--application-id"), {"required": True})
_OF_REALM = (("-r", "--realm-id"), {"required": True})
_CONFIG = (
    _OF_REALM,
    (("-n", "--name"), {"required": True}),
    (("-v", "--version"), {"required": True}),
    (("-i", "--image-registry"), {"required": True}),
    (("-o", "--image-storage-size-mb"), {"required": True, "type": int}),
    (("-d", "--data-storage-size-mb"), {"required": True, "type": int}),
)
# name -> (handler, options as add_argument takes them)
COMMANDS: dict[str, tuple[Handler, tuple[Any, ...]]] = {
    "create-realm": (
        _create_realm,
        (
            (("-z", "--id"), {}),
            (("-c", "--cpu"), {"default": "cortex-a57"}),
            (("-m", "--machine"), {"default": "virt"}),
            (("-n", "--core-count"), {"type": int, "default": 2}),
            (("-r", "--ram-size"), {"type": int, "default": 2048}),
            (("-t", "--tap-device"), {"default": "tap100"}),
            (("-a", "--mac-address"), {"default": "52:55:00:d1:55:01"}),
            (("-e", "--network-device"), {"default": "e1000"}),
            (("-u", "--remote-terminal-uri"), {}),
            (("-i", "--kernel-initramfs"), {}),
            (("-o", "--kernel-options"), {}),
            (("-k", "--kernel"), {"required": True}),
            (("-v", "--vsock-cid"), {"type": int, "required": True}),
            (("-d", "--metadata"), {}),
        ),
    ),
    "fetch-attestation-token": (
        _fetch_token,
        (_REALM_ID, (("-c", "--challenge"), {"default": "00" * CHALLENGE_BYTES}), (("-o", "--output"), {})),
    ),
    "list-realms": (_list, ()),
    "start-realm": (_on_realm("start"), (_REALM_ID,)),
    "inspect-realm": (_inspect, (_REALM_ID,)),
    "stop-realm": (_on_realm("stop"), (_REALM_ID,)),
    "reboot-realm": (_on_realm("reboot"), (_REALM_ID,)),
    "destroy-realm": (_on_realm("destroy"), (_REALM_ID,)),
    "create-application": (_create_application, _CONFIG),
    "update-application": (_update_application, (_APPLICATION_ID, *_CONFIG)),
    "start-application": (_on_application("start_application"), (_APPLICATION_ID, _OF_REALM)),
    "stop-application": (_on_application("stop_application"), (_APPLICATION_ID, _OF_REALM)),
}


def _parser(name: str) -> _Parser:
    parser = _Parser(prog=name, add_help=True, allow_abbrev=False)
    for flags, settings in COMMANDS[name][1]:
        parser.add_argument(*flags, **settings)
    return parser


def execute(client: WardenClient, line: str) -> str:
    """Run one command line; returns what to print.

    Raises:
        IsletError: The line is wrong, or the command failed.
    """
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise InputError(f"{line}: {error}", code="usage") from None
    if not words:
        return ""
    if words[0] == "help":
        return "\n".join([*COMMANDS, "exit", "", "COMMAND --help shows its options."])
    if words[0] not in COMMANDS:
        raise InputError(f"unknown command {words[0]!r}", code="usage", hint="help lists the commands")
    try:
        options = _parser(words[0]).parse_args(words[1:])
    except _HelpShown:
        return ""
    return COMMANDS[words[0]][0](client, options)
