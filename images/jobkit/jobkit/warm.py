"""Wait in a warm container, with the model loaded, for the line that starts the job."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

SOCKET_NAME = "start.sock"


@contextlib.contextmanager
def bind_start_socket(folder: Path, number: int = 0) -> Iterator[socket.socket]:
    """Bind the unix socket `folder`/start.sock; start-1.sock for job 1 of a reused container, and so on.

    It is bound through a descriptor: an address has at most 107 bytes, and a path may have more.
    """
    name = f"start-{number}.sock" if number else SOCKET_NAME
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(f"/proc/self/fd/{descriptor}/{name}")
            listener.listen(1)
            yield listener
    finally:
        with contextlib.suppress(FileNotFoundError):
            (folder / name).unlink()
        os.close(descriptor)


def wait_for_start(listener: socket.socket) -> None:
    """Return when a connection sent a complete line. Connections that close without one are ignored."""
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as lines:
            if lines.readline(4096).endswith(b"\n"):
                return
