"""Fixtures of the attacks: a small app on the edge's own server, clients that break the rules of HTTP, and the
installations of tests/e2e with an endpoint that runs arbitrary code.

Each attack is bounded in bytes, connections and seconds, and uses loopback only.
"""

import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import ByteStream
from anyio.streams.tls import TLSAttribute, TLSStream
from msgspec import Struct
from starlette.types import ASGIApp, Receive, Scope, Send

from edge.core.clients import ThrottledClientLog
from edge.server.bounded_server import make_server, make_server_context
from edge.server.certificate import ServedCertificate, load_or_create_certificate, watch_certificate
from edge.server.connections import ServerSettings
from tests.e2e.conftest import docker_url, echo_image, engine, engine_url, shared_idle, shared_installation
from tests.support.docker_images import build_image
from tests.support.installation import ENDPOINTS, IMAGES

__all__ = ["docker_url", "echo_image", "engine", "engine_url", "hostile_image", "shared_idle", "shared_installation"]

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


class AttackTarget(Struct, frozen=True):
    """A server on 127.0.0.1. `tls`: whether it uses TLS."""

    port: int
    tls: bool

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[ByteStream]:
        """Open a connection, with a TLS handshake if the server uses TLS."""
        async with await anyio.connect_tcp("127.0.0.1", self.port) as plain:
            yield await self._secured(plain) if self.tls else plain

    async def _secured(self, plain: ByteStream) -> ByteStream:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return await TLSStream.wrap(plain, server_side=False, ssl_context=context, standard_compatible=False)

    async def handshake(self, ciphers: str) -> str:
        """Return the suite that a TLS 1.2 client with `ciphers` negotiates. Raises ssl.SSLError, EndOfStream."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(ciphers)
        async with await anyio.connect_tcp("127.0.0.1", self.port) as plain:
            secured = await TLSStream.wrap(plain, server_side=False, ssl_context=context, standard_compatible=False)
            return str(secured.extra(TLSAttribute.cipher)[0])

    async def ask(self, request: bytes = GET) -> bytes:
        """Send `request` on a new connection and return the whole response."""
        async with self.connected() as stream:
            await stream.send(request)
            return await read_response(stream)


async def read_response(stream: ByteStream, within_s: float = 10) -> bytes:
    """Return all bytes until the server closes, or until one response with a Content-Length is complete."""
    said = b""
    with anyio.fail_after(within_s):
        while True:
            try:
                said += await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return said
            head, _, body = said.partition(b"\r\n\r\n")
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            if length and len(body) >= int(length[0].split(b":")[1]):
                return said


async def is_closed(stream: ByteStream, within_s: float) -> bool:
    """Return whether the server closes within `within_s`. Bytes before that are dropped."""
    with anyio.move_on_after(within_s):
        while True:
            try:
                await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return True
    return False


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Respond with the path and the size of the body, without storing the body."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = f"{scope['path']} {size}".encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


ServeFunction = Callable[..., AbstractAsyncContextManager[AttackTarget]]


@asynccontextmanager
async def serve_target(
    folder: Path, *, app: ASGIApp = _echo, tls: bool = False, **bounds: object
) -> AsyncIterator[AttackTarget]:
    """Run the edge's server with `app`. `bounds`: settings in place of the defaults."""
    certificate = load_or_create_certificate(folder / "tls", ("127.0.0.1",), datetime.now(UTC)) if tls else None
    context = make_server_context(ServerSettings(**bounds), ThrottledClientLog())
    served = None if certificate is None else ServedCertificate(certificate)
    made = make_server(app, context, served)
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)  # the server closes it
    async with anyio.create_task_group() as watching:
        if served is not None:
            watching.start_soon(watch_certificate, served, anyio.lowlevel.checkpoint)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(made.serve, [listening])
            with anyio.fail_after(10):
                while not made.started:  # noqa: ASYNC110 - uvicorn announces it with a flag
                    await anyio.sleep(0.01)
            try:
                yield AttackTarget(listening.getsockname()[1], tls)
            finally:
                made.should_exit = True
        watching.cancel_scope.cancel()


@pytest.fixture
def serve(tmp_path: Path) -> ServeFunction:
    """Return `serve_target` with a folder of the test."""

    def within(**how: object) -> AbstractAsyncContextManager[AttackTarget]:
        return serve_target(tmp_path, **how)

    return within


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def tls(request: pytest.FixtureRequest) -> bool:
    """Run the test with and without TLS."""
    return bool(request.param)


HOSTILE = Path(__file__).parent / "endpoints" / "hostile"
ENDPOINT_DIRS = (IMAGES / "echo", HOSTILE)
DOCKER = pytest.param("docker", marks=pytest.mark.docker)


@pytest.fixture(scope="session")
def hostile_image(docker_url: str, echo_image: str) -> str:
    return build_image(docker_url, "lamplighter-test-hostile", str(HOSTILE))


@pytest.fixture(scope="session")
def endpoint_image(hostile_image: str) -> str:
    return hostile_image


@pytest.fixture(scope="session")
def endpoints() -> Sequence[Path]:
    return (*ENDPOINTS, HOSTILE)


@pytest.fixture(scope="module")
def home_folder(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp(engine)
    yield folder
    remove_tree(folder)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """Empty the folder after the test: pytest removes old folders recursively, which would fail here."""
    yield tmp_path
    remove_tree(tmp_path)


def remove_tree(folder: Path) -> None:
    """Use `rm`, which does not recurse, and not the code under test."""
    subprocess.run(
        ["find", str(folder), "-mindepth", "1", "-maxdepth", "1", "-exec", "rm", "-rf", "{}", "+"], check=True
    )
