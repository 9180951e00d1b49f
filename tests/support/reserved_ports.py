"""Ports of loopback for servers that must know theirs beforehand, or come back at the one they had."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

HOST = "127.0.0.1"


def reserve_port() -> socket.socket:
    """Bind a free port without listening there. Close the socket to give the port back.

    A server that sets SO_REUSEADDR, as nats-server does, can listen on the port, also again after a restart. The kernel
    gives it to nobody who asks for any port.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((HOST, 0))
    return held


def address_of(held: socket.socket) -> str:
    """Return where a server listens on a reserved port, as host:port."""
    return f"{HOST}:{held.getsockname()[1]}"


@contextmanager
def reserve_ports(count: int) -> Iterator[list[int]]:
    """Hold so many ports for as long as the block runs."""
    with ExitStack() as stack:
        yield [stack.enter_context(reserve_port()).getsockname()[1] for _ in range(count)]
