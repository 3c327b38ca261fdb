"""The registry client: pulls manifests and blobs, resumes, retries, and trusts no byte before its digest is right.

Used by `islet image pull` and by the app manager inside a realm, so it stands on the standard library alone.
"""

from __future__ import annotations

from islet_cli.registry.client.address import Address, TlsOptions
from islet_cli.registry.client.api import Fetched, RegistryClient

__all__ = ["Address", "Fetched", "RegistryClient", "TlsOptions"]
