"""The native module: submodules are attributes (`from islet_cli import _native; _native.blockcrypt…`)."""

from . import blockcrypt as blockcrypt
from . import guest as guest
