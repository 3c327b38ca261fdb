"""The daemon inside a realm: fetches, verifies, installs, attests and runs applications.

Everything here must start fast under emulation: modules import the standard library at the top and
everything else where it is used. No asyncio; long work runs in threads.
"""
