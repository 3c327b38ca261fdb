"""The emulated platform: HES and RMM in a process of their own, reached over Unix sockets. Import the submodules.

It gives no protection from the host, and its evidence says so.
"""
