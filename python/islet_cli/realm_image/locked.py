"""Single files of the packages that a realm image is locked to."""

from __future__ import annotations

from islet_cli.config import Workspace
from islet_cli.errors import InputError
from islet_cli.launch.manifest import Manifest
from islet_cli.realm_image import lock as lockfile
from islet_cli.realm_image.arch import buildable
from islet_cli.realm_image.debfile import members
from islet_cli.realm_image.packages import PackageStore, user_cache


def package_file(workspace: Workspace, manifest: Manifest, package: str, path: str) -> bytes:
    """Return a regular file of a locked package.

    Args:
        package: Its name, `busybox-static`.
        path: Inside the package, without a leading slash.

    Raises:
        InputError: There is no lock, or it names no such package or file.
        UnavailableError: The package is neither kept nor to be fetched.
    """
    lock = lockfile.load(manifest.lock_path)
    if lock is None:
        raise InputError(f"{manifest.lock_path}: no such file", code="no-such-file", hint="run: islet realm build")
    chosen = [item for item in lock.package if item.name == package]
    store = PackageStore(buildable(manifest.arch), workspace.cache_dir / "packages", [user_cache() / "packages"])
    for data in store.read(chosen).values():
        for member in members(data, what=package):
            if member.path == path and member.kind == "file":
                return member.data
    raise InputError(f"{manifest.lock_path}: no {path} in a package {package}", code="no-such-file")
