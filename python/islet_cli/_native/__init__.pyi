"""Stubs of the extension module; each submodule has its own file here."""

from islet_cli._native import blockcrypt as blockcrypt
from islet_cli._native import granulehash as granulehash
from islet_cli._native import guest as guest
from islet_cli._native import layers as layers
from islet_cli._native import ratls as ratls
from islet_cli._native import rim as rim
