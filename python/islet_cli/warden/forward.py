"""Join standard input and output to a TCP port of the host: `forward.py HOST PORT`.

QEMU starts it for each connection that the guest makes to a forwarded address; both descriptors are
one socket. Only the standard library, and little of it: it is started per connection. It ends when
either side does.
"""

import os
import select
import socket
import sys


def _copy(source: int, target: int) -> bool:
    """Move what is there; return whether `source` goes on."""
    data = os.read(source, 1 << 16)
    while data:
        count = os.write(target, data)
        data = data[count:]
        if not data:
            return True
    return False


def main() -> int:
    """Shuttle bytes until both directions have ended, or one of them broke."""
    try:
        registry = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
    except OSError as error:
        print(f"forward to {sys.argv[1]}:{sys.argv[2]}: {error}", file=sys.stderr)
        return 1
    registry.settimeout(None)
    far = registry.fileno()
    open_ends = {0: far, far: 1}
    try:
        while open_ends:
            for source in select.select(list(open_ends), [], [])[0]:
                if _copy(source, open_ends[source]):
                    continue
                del open_ends[source]
                if source == 0:
                    registry.shutdown(socket.SHUT_WR)
                else:
                    # The registry has ended its answer; the guest has nothing more to wait for.
                    return 0
    except OSError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
