"""The program of the jobs in test_egress.py: makes the requests of its argument, and prints what came of each."""

import json
import pathlib
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request


def get(url, body=None):
    """Return status and body of a request by the proxy of the environment."""
    try:
        with urllib.request.urlopen(url, body and body.encode(), timeout=30) as response:
            return [response.status, response.read().decode()]
    except urllib.error.HTTPError as error:
        return [error.code, error.read().decode()]
    except OSError as error:
        return ["error", str(error)]


def tunnel(authority, server_name=None):
    """Return what came of a CONNECT, after a ClientHello with this server name, or after bytes that are no TLS."""
    with socket.create_connection(("127.0.0.1", 3128), timeout=30) as proxy:
        proxy.sendall(f"CONNECT {authority} HTTP/1.1\r\n\r\n".encode())
        answer = proxy.recv(65536).decode()
        if " 200 " not in answer.split("\r\n")[0]:
            return answer.split(" ")[1]
        if server_name is None:
            proxy.sendall(b"hello\r\n")
        else:
            outgoing = ssl.MemoryBIO()
            context = ssl.create_default_context()
            client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=server_name)
            try:
                client.do_handshake()
            except ssl.SSLWantReadError:
                hello = outgoing.read()
            for start in range(0, len(hello), 100):  # in pieces, as a network may deliver it
                proxy.sendall(hello[start : start + 100])
        try:
            return proxy.recv(100).decode() or "closed"
        except ConnectionResetError:
            return "closed"


def direct(address, port):
    """Return what came of a connection without the proxy."""
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError as error:
        return type(error).__name__ + ": " + str(error)
    return "connected"


def lookup(name):
    """Return whether DNS answers inside the container."""
    try:
        return str(socket.getaddrinfo(name, 80)[0][4][0])
    except OSError:
        return "no answer"


def interfaces():
    """Return the names of the network interfaces."""
    return [name for _, name in socket.if_nameindex()]


def take(address, port):
    """Return what came of listening in the proxy's place."""
    taker = socket.socket()
    taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        taker.bind((address, port))
        taker.listen()
    except OSError as error:
        return error.strerror
    return "taken"


def listen(port):
    """Listen, tell it by a file, and go on."""
    kept.append(socket.create_server(("127.0.0.1", port)))
    pathlib.Path("/job/out/listens").touch()


def unix(path):
    """Return what came of a connection to a unix socket; a path that begins with @ is abstract."""
    try:
        if not path.startswith("@"):
            pathlib.Path(path).stat()  # connect refuses a long path without looking whether it exists
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path.replace("@", chr(0), 1))
    except OSError as error:
        return error.strerror
    return "connected"


def processes():
    """Return the programs of all processes that are visible."""
    names = [path.read_text().strip() for path in pathlib.Path("/proc").glob("[0-9]*/comm")]
    return sorted(names)


kept = []


def wait_for(path):
    """Wait until the test makes the file."""
    while not pathlib.Path(path).exists():
        time.sleep(0.05)


CALLS = {
    call.__name__: call for call in (get, tunnel, direct, lookup, interfaces, wait_for, take, listen, unix, processes)
}
json.dump([CALLS[name](*arguments) for name, *arguments in json.loads(sys.argv[1])], sys.stdout)
