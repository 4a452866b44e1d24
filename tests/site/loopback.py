"""Sockets on loopback: one port on many addresses, which stand for the hosts of a web."""

import socket
import sys

HOSTS = 40 if sys.platform == "linux" else 1
"""127.0.0.1 and on; Linux answers on all of 127.0.0.0/8, others on the first only."""
BACKLOG = 512


def listen(hosts: int, port: int) -> list[socket.socket]:
    """A listening socket on each of 127.0.0.1 to 127.0.0.`hosts`, all on one port; 0 means one that is free on all of them.

    Raises OSError where the port is taken.
    """
    for tries_left in reversed(range(20 if port == 0 else 1)):
        sockets: list[socket.socket] = []
        try:
            for n in range(1, hosts + 1):
                sockets.append(_bound(f"127.0.0.{n}", sockets[0].getsockname()[1] if sockets else port))
            return sockets
        except OSError:
            for s in sockets:
                s.close()
            if not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


def free_port(first: int) -> int:
    """The first port from `first` on that is free on every host. Raises OSError where a hundred are taken."""
    for port in range(first, first + 100):
        try:
            sockets = listen(HOSTS, port)
        except OSError:
            continue
        for s in sockets:
            s.close()
        return port
    raise OSError(f"no port from {first} to {first + 99} is free")


def _bound(host: str, port: int) -> socket.socket:
    # asyncio turns off Nagle's algorithm, which costs 40 ms an answer, only where the protocol is named.
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made
