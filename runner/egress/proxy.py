"""A forward proxy (RFC 9110, 7.3.2 and 9.3.6) for one job, and the rules that say which hosts the job may reach.

It serves CONNECT, and http URLs with one request a connection. A name is resolved once, and all its addresses are
checked. Each request is checked by the rules, also each that follows a redirect, and goes to an address that was
checked: a name that resolves differently a moment later changes nothing. With an allow list, a tunnel must begin with a
TLS ClientHello that names the host of the CONNECT request.

The listening socket belongs to the job's network namespace, and a program of the image may hold it too. So a thread
waits for connections: whatever that program does to the socket, the event loop of the runner never blocks.
"""

import asyncio
import errno
import os
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import urlsplit

import anyio
import structlog

from schemas.outbound_rules import Address, ends_in_number, parse_ip_literal, refusal_reason

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

PHRASE_LIMIT_CHARS = 200  # of a status line
ADDRESS_LIMIT = 4  # addresses tried for one name
ALLOWED_PREFIX = "*."
_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\Z")

_log = structlog.get_logger("egress")


class EgressRefused(Exception):
    """A job may not reach this host; the message says why."""


async def resolve_host(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a name in the order of the system's resolver. Raises OSError."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[4][0]) for place in found))


class EgressRules:
    """The rules of this host. `denied`: hosts that no job may reach although they may be public: broker and edge."""

    def __init__(self, denied: Collection[str] = (), resolve: Resolver = resolve_host) -> None:
        self._denied = frozenset(_normalize(host) for host in denied)
        self._resolve = resolve

    async def check(self, host: str, port: int, allow: Collection[str]) -> list[Address]:
        """Return the addresses to connect to, in order.

        `allow`: the names of the endpoint; none: every public host. One refused address of a name refuses the name.
        Raises EgressRefused, and OSError if the name cannot be resolved.
        """
        name = _normalize(host)
        literal = parse_ip_literal(name)
        if literal is None and (ends_in_number(name) or not _HOST_NAME.match(name)):
            raise EgressRefused(f"{name[:100]} is neither a name nor an address in its usual form")
        if allow and (literal is not None or not is_allowed(name, allow)):
            raise EgressRefused(f"{name} is not in `allow` of the endpoint, which has {', '.join(allow)}")
        if name in self._denied:
            raise EgressRefused(f"{name} belongs to Lamplighter itself")
        found = [literal] if literal is not None else await self._find_addresses(name, port)
        denied = await self._denied_addresses() if self._denied else frozenset()
        for address in found:
            if reason := refusal_reason(address):
                raise EgressRefused(f"{name} is {reason} ({address})")
            if address in denied:
                raise EgressRefused(f"{name} belongs to Lamplighter itself ({address})")
            if is_own_address(address):
                raise EgressRefused(f"{name} is this host itself ({address})")
        return found[:ADDRESS_LIMIT]

    async def _find_addresses(self, name: str, port: int) -> list[Address]:
        try:
            answers = await self._resolve(name, port)
        except UnicodeError as error:
            raise OSError(f"{name} cannot be resolved: {error}") from error
        found: list[Address] = []
        for answer in answers:
            address = parse_ip_literal(answer)
            if address is None:  # an IPv6 address with a zone: link-local
                raise EgressRefused(f"{name} resolves to an address of one link ({answer})")
            found.append(address)
        if not found:
            raise OSError(f"{name} has no address")
        return found

    async def _denied_addresses(self) -> frozenset[Address]:
        found: set[Address] = set()
        for host in self._denied:
            literal = parse_ip_literal(host)
            try:
                answers = [literal] if literal else [parse_ip_literal(one) for one in await self._resolve(host, 0)]
            except (OSError, UnicodeError):  # a name without an address protects nothing
                continue
            found.update(address for address in answers if address is not None)
        return frozenset(found)


def is_allowed(name: str, allow: Collection[str]) -> bool:
    """Return whether a list of names has `name`: `*.example.com` has every name below example.com."""
    for entry in allow:
        pattern = entry.lower()
        if pattern == name or (pattern.startswith(ALLOWED_PREFIX) and name.endswith(pattern[1:])):
            return True
    return False


def is_own_address(address: Address) -> bool:
    """Return whether this machine has the address. Its kernel then sends from the address that it sends to."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))  # sends nothing
            return parse_ip_literal(str(probe.getsockname()[0])) == address
    except OSError:  # no route: a connection fails too
        return False


def _normalize(host: str) -> str:
    return host.strip("[]").lower().removesuffix(".")


CONNECTION_LIMIT = 64  # of one job at the same time; each holds two descriptors of the runner
FULL_PAUSE_S = 0.2  # while the runner has no free descriptor
HEAD_LIMIT_BYTES = 64 * 1024
HELLO_LIMIT_BYTES = 64 * 1024
HEAD_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
BLOCK_BYTES = 64 * 1024
# Headers of one hop (RFC 9110, 7.6.1), and Host, which is written again from the URL.
DROPPED_HEADERS = frozenset(
    ["connection", "host", "keep-alive", "proxy-authorization", "proxy-connection", "te", "trailer", "upgrade"]
)


def proxy_env(port: int) -> dict[str, str]:
    """Return the variables by which programs find the proxy. Some read the names in capitals, some the others."""
    url, direct = f"http://127.0.0.1:{port}", "localhost,127.0.0.1,::1"
    names = {"HTTP_PROXY": url, "HTTPS_PROXY": url, "ALL_PROXY": url, "NO_PROXY": direct}
    return {**names, **{name.lower(): value for name, value in names.items()}}


class ProxyRequest(NamedTuple):
    """The head of a request. `target`: the path for the server; empty for CONNECT."""

    method: str
    host: str
    port: int
    target: str
    headers: tuple[tuple[str, str], ...]
    body_bytes: int


class RequestInvalid(Exception):
    """The request cannot be served; the message says why."""


def parse_request(head: bytes) -> ProxyRequest:
    """Parse the head of a request to a proxy. Raises RequestInvalid."""
    try:
        first, *lines = head.decode("ascii").removesuffix("\r\n\r\n").split("\r\n")
        method, target, version = first.split(" ")
    except ValueError as error:
        raise RequestInvalid("the request is not HTTP") from error
    if version not in {"HTTP/1.1", "HTTP/1.0"} or not method.isalpha():
        raise RequestInvalid("the request is not HTTP/1.1")
    headers = tuple(_parse_header(line) for line in lines)
    if method == "CONNECT":
        host, port = _split_authority(target, 0)
        return ProxyRequest(method, host, port, "", headers, 0)
    try:
        url = urlsplit(target)
        authority = url.netloc
    except ValueError as error:
        raise RequestInvalid("the URL cannot be read") from error
    if url.scheme != "http" or not authority or "@" in authority:
        raise RequestInvalid("a proxy takes http:// URLs without a password, and CONNECT for everything else")
    host, port = _split_authority(authority, 80)
    path = target[len("http://") + len(authority) :].partition("#")[0]
    return ProxyRequest(method, host, port, path if path.startswith("/") else f"/{path}", headers, _body_bytes(headers))


def _parse_header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not name or any(character in " \t" for character in name) or "\n" in line or "\r" in line:
        raise RequestInvalid("a header is not valid")
    return name.lower(), value.strip()


def _body_bytes(headers: Collection[tuple[str, str]]) -> int:
    lengths = {value for name, value in headers if name == "content-length"}
    if any(name == "transfer-encoding" for name, _ in headers):
        raise RequestInvalid("a body of unknown length is not supported: send Content-Length, or use https")
    if len(lengths) > 1 or any(not (value.isascii() and value.isdecimal()) for value in lengths):
        raise RequestInvalid("Content-Length is not valid")
    return int(lengths.pop()) if lengths else 0


def _split_authority(authority: str, default_port: int) -> tuple[str, int]:
    host, colon, port = authority.rpartition(":")
    if not colon or authority.endswith("]"):
        host, port = authority, str(default_port or "")
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536) or not host:
        raise RequestInvalid("the host needs a port, as in example.com:443")
    if ":" in host.strip("[]") and not (host.startswith("[") and host.endswith("]")):
        raise RequestInvalid("an IPv6 address stands in brackets")
    return host, int(port)


class EgressProxy:
    """Serves the proxies of all jobs of a runner."""

    def __init__(self, rules: EgressRules | None = None) -> None:
        self.rules = rules or EgressRules()

    def serve(self, listener: socket.socket, allow: tuple[str, ...]) -> "ServedListener":
        """Serve connections of `listener` until the result is closed. Call it on the event loop."""
        return ServedListener(self.rules, listener, allow)


class ServedListener:
    """The proxy of one job, on the listening socket inside the job's network."""

    def __init__(self, rules: EgressRules, listener: socket.socket, allow: tuple[str, ...]) -> None:
        self._rules = rules
        self._listener = listener
        self._allow = allow
        self._loop = asyncio.get_running_loop()
        self._connections: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._accept, name="egress", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all connections, and accept none. The socket itself goes on where another process holds it."""
        if not self._is_closed:
            self._is_closed = True
            os.close(self._wake_write)
        for task in self._connections:
            task.cancel()

    def _accept(self) -> None:
        """Accept connections in the thread until `close`."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        try:
            while True:
                ready = dict(poll.poll())
                if self._wake_read in ready or ready.get(self._listener.fileno(), 0) & ~select.POLLIN:
                    return
                try:
                    connection, _ = self._listener.accept()
                except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                    continue
                except OSError as error:
                    if error.errno not in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                        return
                    time.sleep(FULL_PAUSE_S)
                    continue
                try:
                    self._loop.call_soon_threadsafe(self._start, connection)
                except RuntimeError:  # the runner has ended
                    connection.close()
                    return
        finally:
            self._listener.close()
            os.close(self._wake_read)

    def _start(self, connection: socket.socket) -> None:
        if len(self._connections) >= CONNECTION_LIMIT:
            connection.close()
            return
        task = self._loop.create_task(self._serve(connection))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection, limit=HEAD_LIMIT_BYTES)
        try:
            await self._handle(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # one of the two sides has gone, or has sent no whole request
        finally:
            writer.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(HEAD_TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
        try:
            request = parse_request(head)
            addresses = await self._rules.check(request.host, request.port, self._allow)
        except RequestInvalid as error:
            return await _refuse(writer, HTTPStatus.BAD_REQUEST, str(error))
        except EgressRefused as error:
            _log.info("egress_refused", error=str(error))
            return await _refuse(writer, HTTPStatus.FORBIDDEN, str(error))
        except OSError as error:
            return await _refuse(writer, HTTPStatus.BAD_GATEWAY, f"{request.host} cannot be resolved: {error}")
        upstream = await _connect([str(address) for address in addresses], request.port)
        if upstream is None:
            return await _refuse(writer, HTTPStatus.BAD_GATEWAY, f"{request.host} port {request.port} does not answer")
        try:
            if request.method == "CONNECT":
                await self._tunnel(request, (reader, writer), upstream)
            else:
                await _forward(request, (reader, writer), upstream)
        finally:
            upstream[1].close()
        return None

    async def _tunnel(self, request: ProxyRequest, client: "Stream", upstream: "Stream") -> None:
        client[1].write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await client[1].drain()
        if self._allow:
            hello, name = await _read_hello(client[0])
            if name is None or name.lower().removesuffix(".") != request.host.lower().removesuffix("."):
                _log.info("egress_refused", error=f"a tunnel to {request.host} began with the TLS name {name}")
                return
            upstream[1].write(hello)
            await upstream[1].drain()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_copy(client[0], upstream[1]))
                tasks.create_task(_copy(upstream[0], client[1]))
        except* OSError:  # one of the two sides has gone
            pass


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _read_hello(reader: asyncio.StreamReader) -> tuple[bytes, str | None]:
    """Return the first bytes of a tunnel, and the TLS server name in them; None if they are no ClientHello."""
    found, received = ServerNameReader(), b""
    async with asyncio.timeout(HEAD_TIMEOUT_S):
        while not found.is_done and len(received) < HELLO_LIMIT_BYTES:
            data = await reader.read(BLOCK_BYTES)
            if not data:
                break
            received += data
            found.feed(data)
    return received, found.name


async def _connect(addresses: list[str], port: int) -> Stream | None:
    for address in addresses:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await asyncio.open_connection(address, port)
    return None


async def _forward(request: ProxyRequest, client: Stream, upstream: Stream) -> None:
    """Send one request and its body, then pass on the response until the server closes the connection."""
    host = request.host if request.port == 80 else f"{request.host}:{request.port}"
    listed = "".join(f"{name}: {value}\r\n" for name, value in request.headers if name not in DROPPED_HEADERS)
    head = f"{request.method} {request.target} HTTP/1.1\r\nHost: {host}\r\n{listed}Connection: close\r\n\r\n"
    upstream[1].write(head.encode("ascii"))

    async def send_body() -> None:
        left = request.body_bytes
        while left and (data := await client[0].read(min(left, BLOCK_BYTES))):
            upstream[1].write(data)
            await upstream[1].drain()
            left -= len(data)

    body = asyncio.create_task(send_body())
    try:
        await _copy(upstream[0], client[1])
    finally:
        body.cancel()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on everything, then the end. An error on one side ends both."""
    while data := await reader.read(BLOCK_BYTES):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def _refuse(writer: asyncio.StreamWriter, status: HTTPStatus, reason: str) -> None:
    """Answer with the reason in the body, and in the status line: clients show only that for a refused CONNECT."""
    line = f"lamplighter: {reason}"
    phrase = "".join(char if " " <= char <= "~" else "?" for char in line[:PHRASE_LIMIT_CHARS])
    body = f"{line}\n".encode()
    head = f"HTTP/1.1 {status:d} {phrase}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
    await writer.drain()


class ServerNameReader:
    """Takes the bytes that a client sends first, as they arrive. `is_done`: it is complete, or no ClientHello."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.is_done = False
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sni_callback = self._note_name
        self._incoming = ssl.MemoryBIO()
        self._connection = context.wrap_bio(self._incoming, ssl.MemoryBIO(), server_side=True)

    def _note_name(self, _: object, name: str | None, __: object) -> int:
        self.name = name
        return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME  # nothing more is needed of this handshake

    def feed(self, data: bytes) -> None:
        """Read more of what the client sent."""
        self._incoming.write(data)
        try:
            self._connection.do_handshake()
        except ssl.SSLWantReadError:
            return
        except (ssl.SSLError, ValueError):  # the end that the callback asked for, or no ClientHello
            pass
        self.is_done = True
