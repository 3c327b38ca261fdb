"""The input keying material of all application keys, and the metadata check before it.

The host chooses which metadata block a realm gets, and the sealing key depends on its signer. So unless the
block is the one that the measured policy names, only keys that are bound to the RIM are asked for: the data of
another identity then simply does not open.
"""

from __future__ import annotations

from dataclasses import dataclass

from islet_cli.appmanager.config import FLAG_RIM, FLAG_SVN, Config, MetadataRule
from islet_cli.appmanager.rsi import Rsi, RsiError
from islet_cli.errors import InputError, InternalError


@dataclass(frozen=True)
class SealingMaterial:
    """The root of this boot's application keys.

    Attributes:
        ikm: Input keying material; wipe it after use.
        bind_image: Mix the image's hash into data keys.
        reason: Why only RIM-bound keys are used, None when the metadata block is as the policy says.
    """

    ikm: bytearray
    bind_image: bool
    reason: str | None = None


def obtain(config: Config, rsi: Rsi | None) -> SealingMaterial:
    """Get the keying material that the configuration names.

    Raises:
        RsiError: The monitor refused the key.
    """
    sealing = config.sealing
    if sealing.kind == "dummy":
        return SealingMaterial(bytearray(b"\x11\x22\x33"), False)
    if sealing.kind == "stub":
        return SealingMaterial(bytearray(sealing.stub), False)
    if rsi is None:
        raise InternalError("sealing by RSI was configured without RSI")
    flags, svn = sealing.flags, sealing.svn
    reason = None
    if not config.policy.compat and not flags & FLAG_RIM:
        reason = metadata_problem(config.policy.metadata, rsi)
        if reason is not None:
            # Without the SVN bit: the svn of a foreign block may be below ours, which the monitor refuses.
            flags, svn = (flags | FLAG_RIM) & ~FLAG_SVN, 0
    return SealingMaterial(rsi.sealing_key(flags, svn), bool(flags & FLAG_RIM), reason)


def metadata_problem(rule: MetadataRule | None, rsi: Rsi) -> str | None:
    """What keeps the realm's metadata block from being the policy's; None when it is the one."""
    from islet_cli.metadata.block import parse

    if rule is None:
        return "the policy names no metadata signer"
    try:
        block = parse(rsi.realm_metadata())
    except (RsiError, InputError) as error:
        return f"the metadata block cannot be read: {error}"
    if block.public_key != rule.public_key:
        return "the metadata block has another signer than the policy names"
    if block.realm_id_field != rule.realm_id.encode().ljust(len(block.realm_id_field), b"\0"):
        return "the metadata block is for another realm id"
    if block.svn < rule.min_svn:
        return f"the metadata block's svn {block.svn} is below the policy's {rule.min_svn}"
    return None
