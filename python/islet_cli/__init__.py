"""islet: provision applications into Arm CCA realms.

The command line lives in `islet_cli.cli`; every other package is a library that neither
prints nor exits. See docs/architecture.md for the map.
"""

__version__ = "0.1.0"
