"""The realm metadata block: `block` (read, verify), `create`, `dump`, `verify`, `monitor`. Import the submodules."""
