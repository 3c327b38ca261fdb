"""Run by the realm's interpreter: JSON jobs on stdin, compiled modules as JSON on stdout."""

import base64
import importlib.util
import json
import marshal
import sys

UNCHECKED_HASH = 0b01  # PEP 552: hash-based, and the hash is not compared with a source

out = {}
for job in json.load(sys.stdin):
    source = base64.b64decode(job["source"])
    code = compile(source, job["path"], "exec", dont_inherit=True, optimize=job["optimize"])
    header = importlib.util.MAGIC_NUMBER + UNCHECKED_HASH.to_bytes(4, "little") + importlib.util.source_hash(source)
    out[job["path"]] = base64.b64encode(header + marshal.dumps(code)).decode("ascii")
json.dump(out, sys.stdout)
