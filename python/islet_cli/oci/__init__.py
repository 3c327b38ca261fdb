"""OCI image layouts: descriptors, loading with full validation, archives, building, unpacking.

Nothing is imported here: parts of this package run inside a realm, where start-up time is dear.
"""
