"""The application registry: server, store, admission, and the client that pulls from it.

Nothing is imported here: `registry.client` also runs inside a realm, where start-up time is dear.
"""
