"""The realm image: a kernel and a reproducible initramfs, built from pinned packages and this package's own files.

build    kernel, initramfs, lock and package list of a realm manifest
publish  RIM, metadata block and reference values of a built image
"""
