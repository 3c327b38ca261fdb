"""`make bench`: figures of this machine, each beside a peer measured in the same run.

python -m bench              everything
python -m bench start rim    the named groups only
"""

from __future__ import annotations

import sys

from bench import realm, rim, start

GROUPS = {"start": start.measure, "rim": rim.measure, "realm": realm.measure}


def main(names: list[str]) -> int:
    unknown = set(names) - set(GROUPS)
    if unknown:
        print(f"no such group: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}", file=sys.stderr)
        return 2
    print(f"{'what':<46} {'ours':>12} {'peer':>12} {'ratio':>8}  peer")
    for name, measure in GROUPS.items():
        if not names or name in names:
            for figure in measure():
                print(figure, flush=True)
    return 0


sys.exit(main(sys.argv[1:]))
