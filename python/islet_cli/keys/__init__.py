"""P-384 signing keys: reading, writing, signing and verifying. Import `islet_cli.keys.ecc`."""
