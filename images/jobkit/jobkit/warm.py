"""A warm slot: wait, model loaded, for the one line that says the job has come."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

SOCKET_NAME = "start.sock"


@contextlib.contextmanager
def bind_start_socket(folder: Path) -> Iterator[socket.socket]:
    """A unix socket `folder`/start.sock. Bound through a descriptor: the address may be 107 bytes, a path longer."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(f"/proc/self/fd/{descriptor}/{SOCKET_NAME}")
            listener.listen(1)
            yield listener
    finally:
        with contextlib.suppress(FileNotFoundError):
            (folder / SOCKET_NAME).unlink()
        os.close(descriptor)


def wait_for_start(listener: socket.socket) -> None:
    """Returns when somebody sent one whole line. Connections that close without one do not count."""
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as lines:
            if lines.readline(4096).endswith(b"\n"):
                return
