"""The realm manifest and the launch plan that follows from it.

`launch.manifest` reads `realm.toml`; `launch.plan` turns it into the one description of a launch
from which the command line, the RIM, the metadata block and the reference values are made.
"""
