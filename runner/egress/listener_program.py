"""The program of a network container: it listens on loopback, and hands its socket to each runner that asks.

It runs in the Python of an image, which may be old, and imports nothing of ours. argv: the port, and the path of the
unix socket that the runner connects to. The socket goes over as a file descriptor, so the runner accepts connections
that are made inside the container's network, although it is not in that network itself.
"""

import array
import contextlib
import socket
import sys

BACKLOG = 128


def main(port: int, path: str) -> None:
    """Listen and serve until killed."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", port))
    listener.listen(BACKLOG)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    control.bind(path)
    control.listen(BACKLOG)
    descriptors = array.array("i", [listener.fileno()])
    while True:
        runner, _ = control.accept()
        with contextlib.suppress(OSError):  # the runner has gone
            runner.sendmsg([b"1"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        runner.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
