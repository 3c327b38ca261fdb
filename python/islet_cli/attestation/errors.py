"""The one error of evidence: every step of reading and verifying a token refuses through it."""

from __future__ import annotations

from islet_cli.errors import VerificationError


class TokenError(VerificationError):
    """A token was refused. `code` names the step: `cbor`, `format`, `tag`, `key`, `cose`, `algorithm`,
    `signature`, `binding`, `missing-claim`, …"""

    default_code = "token"
