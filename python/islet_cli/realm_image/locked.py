"""Files of the packages that a realm's lock pins, for others than the image builder."""

from __future__ import annotations

from islet_cli.config import Workspace
from islet_cli.errors import InputError
from islet_cli.launch.manifest import Manifest
from islet_cli.realm_image import lock as lockfile
from islet_cli.realm_image.arch import buildable
from islet_cli.realm_image.debfile import members
from islet_cli.realm_image.packages import PackageStore, user_cache


def package_file(workspace: Workspace, manifest: Manifest, package: str, path: str) -> bytes:
    """Return one file of a package of the realm's lock, such as `bin/busybox` of `busybox-static`.

    Raises:
        InputError: There is no lock yet, or it has no such package or file (`not-locked`).
        UnavailableError: The package is neither kept nor to be fetched.
    """
    lock = lockfile.load(manifest.lock_path)
    pinned = [item for item in lock.package if item.name == package] if lock else []
    if not pinned:
        raise InputError(
            f"{manifest.lock_path}: does not pin {package}", code="not-locked", hint="run: islet realm build"
        )
    store = PackageStore(buildable(manifest.arch), workspace.cache_dir / "packages", [user_cache() / "packages"])
    for member in members(store.read(pinned)[package], what=package):
        if member.path == path and member.target is None:
            return member.data
    raise InputError(f"package {package} {pinned[0].version} has no file {path}", code="not-locked")
