"""Signing OCI images and verifying them. `signing.verify` alone also runs inside a realm."""
