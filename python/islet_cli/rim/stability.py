"""Whether a manifest's RIM stays when the number of applications changes."""

from __future__ import annotations

from islet_cli.launch.manifest import Manifest


def warnings_of(manifest: Manifest) -> list[str]:
    """What makes the RIM of this manifest depend on more than the realm itself; normally nothing."""
    if manifest.devices.disk_layout != "per-application":
        return []
    count = len(manifest.policy.applications)
    return [
        f'devices.disk_layout = "per-application": the RIM holds for {count} application'
        f"{'' if count == 1 else 's'} only, since each has a disk and every disk is in the device tree; "
        'use "shared" for a RIM that does not depend on their number'
    ]
