"""Building a realm image: kernel and initramfs of a realm manifest, pinned by its lock file.

Bit identity holds for the same lock, wheel, manifest and public keys.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from islet_cli.config import Workspace
from islet_cli.errors import InputError, IsletError, OperationError
from islet_cli.fsutil import exclusive_lock, make_private_directory, os_error, read_file, write_atomic
from islet_cli.launch.manifest import Manifest
from islet_cli.launch.plan import file_sha256
from islet_cli.progress import Report, silent
from islet_cli.realm_image import config_yml, cpio, sbom
from islet_cli.realm_image import lock as lockfile
from islet_cli.realm_image.arch import Arch, buildable
from islet_cli.realm_image.base import GivenKernel, load_or_make
from islet_cli.realm_image.islet_files import SiteFiles, collect
from islet_cli.realm_image.lock import KernelFiles, RealmLock
from islet_cli.realm_image.packages import PackageStore, user_cache

SBOM_NAME = "packages.spdx.json"
STAMP_NAME = "built.json"
# Packages, unpacked interpreter, both archives and the outputs.
_SPACE_NEEDED = 300 << 20
_FILE_LIMIT = 1 << 30


@dataclass(frozen=True)
class BuiltImage:
    """What a build made, or found unchanged (`reused`). Sizes in bytes, digests are SHA-256."""

    kernel: Path
    initramfs: Path
    lock: Path
    sbom: Path
    reused: bool
    sizes: dict[str, int]
    digests: dict[str, str]

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}


def build(
    workspace: Workspace,
    manifest: Manifest,
    *,
    kernel: Path | None = None,
    modules: Path | None = None,
    package_cache: Path | None = None,
    update_lock: bool = False,
    extra_files: Mapping[str, bytes] | None = None,
    report: Report | None = None,
    site: SiteFiles | None = None,
) -> BuiltImage:
    """Build the realm image, or find it unchanged.

    Args:
        workspace: Its public keys enter the image; its cache is used.
        manifest: Decides architecture, policy, and where the results go.
        kernel: A kernel file instead of Debian's; by default the manifest's, when that names one outside of `.islet`.
        modules: Directory with the `.ko` files of `kernel`; none means that everything is built in.
        package_cache: Directory of packages by digest, for building without a network.
        update_lock: Choose today's versions again instead of obeying the lock.
        extra_files: Further files by path relative to the realm's root.
        report: Told of the bytes of packages at hand.
        site: Other files than the installed ones.

    Raises:
        InputError: Malformed lock, missing key, or a lock that does not fit (`lock-mismatch`).
        UnavailableError: A package, module or tool is not to be had.
        OperationError: The disk is full, or the interpreter failed.
    """
    arch = buildable(manifest.arch)
    if modules is not None and kernel is None:
        raise InputError("--modules needs --kernel", code="usage", hint="name the kernel that the modules belong to")
    given = _given_kernel(workspace, manifest, kernel, modules)
    site = site or collect()
    make_private_directory(workspace.cache_dir)
    output = make_private_directory(workspace.realm_dir(manifest.name))
    with exclusive_lock(workspace.cache_dir / "build.lock"):
        store = _store(workspace, arch, package_cache)
        if not manifest.lock_path.exists():
            _require_space(workspace.cache_dir)
        lock = _locked(manifest.lock_path, store, site, arch, given, update_lock)
        signer = metadata_signer(workspace) if manifest.launch.metadata else None
        own = _own_archive(workspace, manifest, lock, signer, extra_files or {})
        stamp = {
            "lock": _sha256(lock.to_toml().encode()),
            "own": _sha256(own),
            "signer": signer.hex() if signer else None,
        }
        image = _reusable(manifest, output, stamp)
        if image is not None:
            return image
        _require_space(workspace.cache_dir)
        base = load_or_make(workspace.cache_dir / "base", lock, store, site, arch, given, report or silent)
        return _write(manifest, output, lock, stamp, base.kernel, base.archive + own)


def metadata_signer(workspace: Workspace) -> bytes:
    """Public key of the metadata block's signer, x||y, 96 bytes: of the workspace's realm key, or `.pub` beside it.

    Raises:
        InputError: Neither file is there, or it is malformed.
    """
    from islet_cli.keys import ecc

    path = workspace.path(workspace.settings.keys.realm)
    public = ecc.load_private(path).public if path.exists() else ecc.load_public(path.with_suffix(".pub"))
    return public.sec1[1:]


def _given_kernel(
    workspace: Workspace, manifest: Manifest, kernel: Path | None, modules: Path | None
) -> GivenKernel | None:
    """The kernel that the caller or the manifest names, or None for Debian's."""
    own = manifest.kernel_path.resolve()
    if not own.is_relative_to(workspace.state):
        if kernel is not None and kernel.resolve() != own:
            raise InputError(
                f"--kernel {kernel}: {manifest.path} names another kernel, {own}",
                code="usage",
                hint="remove image.kernel from the manifest, or --kernel",
            )
        kernel = own
    if kernel is None:
        return None
    files: dict[str, bytes] = {}
    if modules is not None:
        if not modules.is_dir():
            raise InputError(f"--modules {modules}: not a directory", code="no-such-file")
        for path in sorted(modules.rglob("*.ko*")):
            files[path.relative_to(modules).as_posix()] = read_file(path, limit=_FILE_LIMIT)
    return GivenKernel(read_file(kernel, limit=_FILE_LIMIT), files)


def _store(workspace: Workspace, arch: Arch, package_cache: Path | None) -> PackageStore:
    shared = [make_private_directory(user_cache() / "packages")]
    if package_cache is not None:
        try:
            package_cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise os_error(error, package_cache) from error
        shared.insert(0, package_cache)
    return PackageStore(arch, workspace.cache_dir / "packages", shared)


def _locked(
    path: Path, store: PackageStore, site: SiteFiles, arch: Arch, given: GivenKernel | None, renew: bool
) -> RealmLock:
    """The lock to obey: the one that is there, or a new one, which is written."""
    kernel = None if given is None else _kernel_files(given)
    lock = None if renew else lockfile.load(path)
    if lock is None:
        lock = RealmLock(
            created=lockfile.locking_time(),
            arch=arch.name,  # type: ignore[arg-type]
            islet=site.locked,
            kernel=kernel,
            distribution=list(site.distributions),
            package=store.resolve(kernel=given is None),
        )
        store.read(lock.package)  # a lock is written only when all that it names is at hand
        lockfile.save(path, lock)
    for what, locked, now in (
        ("architecture", lock.arch, arch.name),
        ("installed islet files", lock.islet.files, site.locked.files),
        ("kernel", lock.kernel, kernel),
    ):
        if locked != now:
            raise InputError(
                f"{path}: the {what} differ from what the lock says",
                code="lock-mismatch",
                hint="islet realm build --update-lock makes a new lock, and so a new RIM",
            )
    return lock


def _kernel_files(given: GivenKernel) -> KernelFiles:
    modules = "".join(f"{path}\0{_sha256(data)}\n" for path, data in sorted(given.modules.items()))
    return KernelFiles(image=_sha256(given.image), modules=_sha256(modules.encode()))


def _own_archive(
    workspace: Workspace, manifest: Manifest, lock: RealmLock, signer: bytes | None, extra: Mapping[str, bytes]
) -> bytes:
    """The part of the initramfs that is this realm's own."""
    from islet_cli.keys import ecc

    authority = ecc.load_public(workspace.path(workspace.settings.keys.ca).with_suffix(".pub"))
    configuration = config_yml.configuration(manifest, metadata_key=signer)
    tree = cpio.Tree()
    tree.add(config_yml.CONFIG_PATH, cpio.file(config_yml.render(configuration)))
    tree.add(config_yml.CA_PATH, cpio.file(authority.spki))
    tree.add(config_yml.REGISTRY_CA_PATH, cpio.file(read_file(workspace.path(workspace.settings.registry.ca))))
    if configuration["control"] == "vsock":
        tree.add(config_yml.VSOCK_FLAG_PATH, cpio.file(b""))
    for path, data in sorted(extra.items()):
        tree.add(path, cpio.file(data))
    return cpio.archive(tree, mtime=lock.created)


def _reusable(manifest: Manifest, output: Path, stamp: dict[str, Any]) -> BuiltImage | None:
    """The image of an earlier build, when it was made of the same parts and its files are undamaged."""
    try:
        noted = json.loads(read_file(output / STAMP_NAME))
        if noted["inputs"] != stamp:
            return None
        found = _describe(manifest, output, reused=True)
        return found if found.digests == noted["digests"] else None
    except (IsletError, ValueError, KeyError, TypeError):
        return None


def _write(
    manifest: Manifest, output: Path, lock: RealmLock, stamp: dict[str, Any], kernel: bytes, initramfs: bytes
) -> BuiltImage:
    """Write the outputs; the note of what they were made of comes last, so that a torn build is no image."""
    (output / STAMP_NAME).unlink(missing_ok=True)
    for path, data in ((manifest.kernel_path, kernel), (manifest.initramfs_path, initramfs)):
        if not (path == manifest.kernel_path and _same(path, data)):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data, mode=0o644)
    listing = sbom.spdx(lock, name=manifest.name, initramfs_sha256=_sha256(initramfs), kernel_sha256=_sha256(kernel))
    write_atomic(output / SBOM_NAME, listing, mode=0o644)
    built = _describe(manifest, output, reused=False)
    note = {"schema": 1, "inputs": stamp, "digests": built.digests}
    write_atomic(output / STAMP_NAME, json.dumps(note, indent=1).encode(), mode=0o644)
    return built


def _describe(manifest: Manifest, output: Path, *, reused: bool) -> BuiltImage:
    files = {
        "kernel": manifest.kernel_path,
        "initramfs": manifest.initramfs_path,
        "lock": manifest.lock_path,
        "sbom": output / SBOM_NAME,
    }
    return BuiltImage(
        **files,
        reused=reused,
        sizes={name: path.stat().st_size for name, path in files.items() if path.exists()},
        digests={name: file_sha256(path) for name, path in files.items()},
    )


def _same(path: Path, data: bytes) -> bool:
    return path.is_file() and file_sha256(path) == _sha256(data)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _require_space(directory: Path) -> None:
    free = shutil.disk_usage(directory).free
    if free < _SPACE_NEEDED:
        raise OperationError(
            f"{directory}: {free >> 20} MiB free, a realm image needs {_SPACE_NEEDED >> 20} to be built",
            code="disk-full",
            hint="free some space and try again",
        )
