"""The messages between client and warden and between warden and realm, as tables.

Upstream's messages keep their exact JSON; what islet adds is marked. Message values are canonical JSON
(see `codec`): a unit variant is a string, any other an object with one member.

Source: docs/protocols.md; upstream realm-manager's `warden_client_lib` and `warden_realm` crates.
"""

from __future__ import annotations

from islet_cli.warden.codec import (
    Address,
    Array,
    Boolean,
    Default,
    Dictionary,
    EmptyTuple,
    Enum,
    Integer,
    Optional,
    Plain,
    Shape,
    Struct,
    Text,
    Unit,
    Uuid,
)

U8, U16, U32, U64 = (Integer(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
I32 = Integer(-(1 << 31), (1 << 31) - 1)
BYTES = Array(U8)
TEXT, UUID, BOOLEAN = Text(), Uuid(), Boolean()

# ------------------------------------------------------------------------------- client <-> warden

REALM_CONFIG = Struct(
    {
        "id": Optional(UUID),
        "machine": TEXT,
        "cpu": Struct({"cpu": TEXT, "cores_number": U64}),
        "memory": Struct({"ram_size": U64}),
        "network": Struct(
            {
                "vsock_cid": U32,
                "tap_device": TEXT,
                "mac_address": TEXT,
                "hardware_device": Optional(TEXT),
                "remote_terminal_uri": Optional(TEXT),
            }
        ),
        "kernel": Struct(
            {"kernel_path": TEXT, "kernel_initramfs_path": Optional(TEXT), "kernel_cmd_params": Optional(TEXT)}
        ),
        "metadata": Optional(TEXT),
    }
)

APPLICATION_CONFIG = Struct(
    {
        "name": TEXT,
        "version": TEXT,
        "image_registry": TEXT,
        "image_storage_size_mb": U32,
        "data_storage_size_mb": U32,
    }
)

PUBLISH = Struct({"address": Default(TEXT, "127.0.0.1"), "host_port": U16, "guest_port": U16})

_REALM = Struct({"uuid": UUID})
_APPLICATION = Struct({"realm_uuid": UUID, "application_uuid": UUID})
# What a realm is launched with; `launch` is checked by `islet_cli.launch.plan`.
_LAUNCH: dict[str, Shape] = {
    "launch": Plain(),
    "metadata": Optional(TEXT),
    "publish": Default(Array(PUBLISH), []),
    "internet": Default(BOOLEAN, False),
}

_UPSTREAM_COMMANDS: dict[str, Unit | EmptyTuple | Shape] = {
    "CreateRealm": Struct({"config": REALM_CONFIG}),
    "FetchToken": Struct({"uuid": UUID, "challenge": BYTES}),
    "StartRealm": _REALM,
    "StopRealm": _REALM,
    "RebootRealm": _REALM,
    "DestroyRealm": _REALM,
    "InspectRealm": _REALM,
    "ListRealms": Unit(),
    "CreateApplication": Struct({"realm_uuid": UUID, "config": APPLICATION_CONFIG}),
    "StartApplication": _APPLICATION,
    "StopApplication": _APPLICATION,
    "UpdateApplication": Struct({"realm_uuid": UUID, "application_uuid": UUID, "config": APPLICATION_CONFIG}),
}

_ISLET_COMMANDS: dict[str, Unit | EmptyTuple | Shape] = {
    "CreateRealmLaunch": Struct({"id": Optional(UUID), "name": TEXT, **_LAUNCH}),
    "UpdateRealm": Struct({"uuid": UUID, **_LAUNCH}),
    "DescribeRealms": Unit(),
    "DescribeLaunch": _REALM,
    "RemoveApplication": _APPLICATION,
    "InspectApplication": _APPLICATION,
    "KillApplication": _APPLICATION,
    "ConfirmReformat": _APPLICATION,
    "ApplicationLogs": Struct({"realm_uuid": UUID, "application_uuid": UUID, "follow": BOOLEAN}),
    "RealmConsole": Struct({"uuid": UUID, "follow": BOOLEAN}),
}

WARDEN_COMMAND = Enum(_UPSTREAM_COMMANDS | _ISLET_COMMANDS, "command")

REALM_STATE = Enum(dict.fromkeys(("Halted", "Provisioning", "Running", "NeedReboot"), Unit()), "realm state")
_APPLICATION_STATUS = Enum(dict.fromkeys(("Unknown", "NotStarted", "Running", "Exited"), Unit()), "status")
_NETWORK = Array(Struct({"ip": Address(), "if_name": TEXT}))

REALM_DESCRIPTION = Struct({"uuid": UUID, "state": REALM_STATE, "applications": Array(UUID), "network": _NETWORK})

APPLICATION_DESCRIPTION = Struct(
    {
        "uuid": UUID,
        "name": TEXT,
        "version": TEXT,
        "image_registry": TEXT,
        "image_storage_size_mb": U32,
        "data_storage_size_mb": U32,
        "status": _APPLICATION_STATUS,
        "exit_status": Optional(I32),
    }
)

# Progress of one application's provisioning: `stage` is fetch or unpack, the numbers are bytes.
_PROGRESS = Struct({"application": TEXT, "stage": TEXT, "done": U64, "total": U64})

REALM_DETAILS = Struct(
    {
        "uuid": UUID,
        "name": TEXT,
        "state": REALM_STATE,
        "broken": BOOLEAN,
        "busy": Optional(TEXT),
        "last_error": Optional(TEXT),
        "rim": Optional(TEXT),
        "accel": Optional(TEXT),
        "publish": Array(PUBLISH),
        "internet": BOOLEAN,
        "progress": Optional(_PROGRESS),
        "applications": Array(APPLICATION_DESCRIPTION),
    }
)

WARDEN_ERROR = Enum(
    {
        "ReadingRequestFail": Unit(),
        "UnknownCommand": Unit(),
        "SendingResponseFail": Unit(),
        "WardenDaemonFail": Struct({"message": TEXT}),
    },
    "warden error",
)

WARDEN_RESPONSE = Enum(
    {
        "Ok": Unit(),
        "AttestationToken": Struct({"token": BYTES}),
        "CreatedRealm": _REALM,
        "CreatedApplication": _REALM,
        "InspectedRealm": Struct({"description": REALM_DESCRIPTION}),
        "ListedRealms": Struct({"realms_description": Array(REALM_DESCRIPTION)}),
        "Error": Struct({"warden_error": WARDEN_ERROR}),
        # islet
        "InspectedApplication": Struct({"description": APPLICATION_DESCRIPTION}),
        "DescribedRealms": Struct({"realms": Array(REALM_DETAILS)}),
        "DescribedLaunch": Struct({"launch": Plain(), "metadata": Optional(TEXT), "disks": Array(TEXT)}),
        "LogChunk": Struct({"data": BYTES}),
    },
    "response",
)

# -------------------------------------------------------------------------------- warden <-> realm

APPLICATION_INFO = Struct(
    {
        "id": UUID,
        "name": TEXT,
        "version": TEXT,
        "image_registry": TEXT,
        "image_part_uuid": UUID,
        "data_part_uuid": UUID,
    }
)

REALM_REQUEST = Enum(
    {
        "ProvisionInfo": Array(APPLICATION_INFO),
        "GetAttestationToken": BYTES,
        "GetIfAddrs": EmptyTuple(),
        "CheckStatus": UUID,
        "StartApp": UUID,
        "StopApp": UUID,
        "KillApp": UUID,
        "Reboot": EmptyTuple(),
        "Shutdown": EmptyTuple(),
        # islet
        "AllowReformat": UUID,
        "ReadLog": Struct({"id": UUID, "offset": U64, "limit": U64}),
    },
    "request",
)

_INTERFACE = Struct({"address": Address(), "netmask": Optional(Address()), "destination": Optional(Address())})

PROTOCOL_ERROR = Enum(
    {
        "ApplicationNotFound": EmptyTuple(),
        "InvalidRequest": TEXT,
        "ApplicationLaunchFailed": TEXT,
        "ApplicationStopFailed": TEXT,
        "ApplicationKillFailed": TEXT,
        "ApplicationCheckStatusFailed": TEXT,
        "SystemPowerActionFailed": TEXT,
        "GetIfAddrsError": TEXT,
        "ProvisioningError": TEXT,
        "AttestationTokenReadingError": TEXT,
    },
    "error",
)

REALM_RESPONSE = Enum(
    {
        "Success": EmptyTuple(),
        "AttestationToken": BYTES,
        "ApplicationExited": I32,
        "ApplicationIsRunning": EmptyTuple(),
        "ApplicationNotStarted": EmptyTuple(),
        "IfAddrs": Dictionary(_INTERFACE),
        "Error": PROTOCOL_ERROR,
        # islet
        "LogData": Struct({"offset": U64, "next": U64, "data": BYTES}),
    },
    "response",
)

# The bytes that a manager writes before its first frame on a transport without connections: above any
# legal length prefix, so never the beginning of a frame.
REALM_HELLO = b"ISLET-REALM-HI\n\0"
