"""CCA evidence: `token` (read), `verify` (appraise), `reference`, `cpak`, `challenge`, `rem`, `certificate`.

Import the submodules: `challenge` and `rem` also run inside a realm and must stay light.
"""
