"""Measure a submit over the gateway with 1,000 open sockets, and the progress of one job with 500 followers at once."""

import asyncio
import json
import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect

from bench.figures import Figure, p50, p99
from bench.installation import BenchInstallation, run_installation
from bus.interface import Bus
from edge.core.clock import utc_now
from edge.owners.api_keys import ApiKeyStore
from schemas.credentials import CLIENT_SCOPES
from schemas.events import FeedPosition, ProgressMessage
from schemas.job import JobKey

SOCKETS = 1000
SUBMITS = 500
FOLLOWERS = 500
MESSAGES = 40
EVERY_S = 0.25  # the rate at which a runner publishes progress
FAN_OUT_AIM_MS = 50.0
# More than the default limit of open sockets for one key.
LIMITS = {"LAMPLIGHTER_SERVER__STREAMS_PER_KEY": "1000", "LAMPLIGHTER_SERVER__SOCKETS_PER_KEY": "2000"}
_OFFSET = re.compile(rb'"offset":(\d+)')


async def make_keys(made: BenchInstallation, owners: int) -> list[str]:
    """Create `owners` owners, and return a client key for each."""
    async with made.installation.bus() as bus:
        ring = ApiKeyStore(bus.api_keys, utc_now, secrets.token_bytes, time.monotonic)
        return [(await ring.create(f"bench-{number}", CLIENT_SCOPES)).text for number in range(owners)]


def _connect(where: str) -> connect:
    """Return a socket without client pings. The client shares two cores with the server, which may answer them late."""
    return connect(where, compression=None, ping_interval=None)


def _rss_mb(made: BenchInstallation) -> float:
    """Return the edge's resident memory in MiB: VmRSS in proc(5)."""
    status = Path(f"/proc/{made.installation.edge.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


async def _drain(socket: ClientConnection) -> None:
    async for _ in socket:
        pass


async def _open(made: BenchInstallation, keys: list[str], stack: AsyncExitStack, tasks: asyncio.TaskGroup) -> None:
    """Open SOCKETS sockets that read and send nothing, 32 at a time."""
    gate = asyncio.Semaphore(32)
    where = made.installation.url.replace("http", "ws", 1) + "/ws?key="

    async def one(number: int) -> None:
        async with gate:
            socket = await stack.enter_async_context(_connect(where + keys[number % len(keys)]))
            tasks.create_task(_drain(socket))

    async with asyncio.TaskGroup() as opening:
        for number in range(SOCKETS):
            opening.create_task(one(number))


async def _submits(made: BenchInstallation, key: str, count: int = SUBMITS) -> list[float]:
    """Submit one job after the other on one socket. Return the seconds from each submit to its answer."""
    took = []
    async with _connect(made.installation.url.replace("http", "ws", 1) + f"/ws?key={key}") as socket:
        for number in range(count):
            name = f"r-{number}-{secrets.token_hex(4)}"
            message = {"type": "gpu.job.submit", "task_type": "echo", "request_id": name, "payload": {"text": "hello"}}
            began = time.perf_counter()
            await socket.send(json.dumps(message))
            while '"type":"gpu.power.offline"' not in (said := str(await socket.recv())) or name not in said:
                pass
            took.append(time.perf_counter() - began)
    return took


async def _owner_of(owners: int) -> AsyncIterator[Figure]:
    async with run_installation(**LIMITS) as made, AsyncExitStack() as stack:
        keys = await make_keys(made, owners)
        await _submits(made, made.key, 100)
        empty = p50(await _submits(made, made.key))
        before = _rss_mb(made)
        async with asyncio.TaskGroup() as tasks:
            began = time.perf_counter()
            await _open(made, keys, stack, tasks)
            opened = time.perf_counter() - began
            per_socket = (_rss_mb(made) - before) * 1024 / SOCKETS
            took = await _submits(made, keys[0], SUBMITS if owners > 1 else SUBMITS // 5)
            what = f"submit to answer, {SOCKETS} sockets of {owners} owner{'s' * (owners > 1)}"
            note = f"{empty * 1e3:.2f} ms with no other socket; opened in {opened:.1f} s"
            yield Figure("gateway", f"{what}, p50", p50(took) * 1e3, "ms", note=note)
            yield Figure("gateway", f"{what}, p99", p99(took) * 1e3, "ms")
            yield Figure("gateway", f"edge memory a socket, {owners} owner{'s' * (owners > 1)}", per_socket, "KiB")
            await stack.aclose()


class _Follower(asyncio.Protocol):
    """Reads a stream of server-sent events, and records the arrival time of each progress event by its offset."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.ready = asyncio.Event()
        self.whole = asyncio.Event()
        self.came: dict[int, float] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.write(self._request)  # type: ignore[attr-defined]  # create_connection passes a writable transport

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self.ready.set()
        for found in _OFFSET.findall(data):
            self.came.setdefault(int(found), now)
        if len(self.came) == MESSAGES:
            self.whole.set()


async def _fan_out(made: BenchInstallation, bus: Bus) -> AsyncIterator[Figure]:
    job = await made.client.submit("echo", text="followed")
    path = f"/v1/jobs/{job.id}/events"
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {made.key}\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    followers = []
    for _ in range(FOLLOWERS):
        _, follower = await loop.create_connection(lambda: _Follower(request), "127.0.0.1", made.port)
        followers.append(follower)
    for follower in followers:
        await follower.ready.wait()
    opened = time.perf_counter() - began
    said = await _publish(bus, JobKey("ann", job.id))
    async with asyncio.timeout(60):
        for follower in followers:
            await follower.whole.wait()
    times = [[follower.came[offset] for follower in followers] for offset in said]
    spreads = [(max(came) - min(came)) * 1e3 for came in times]
    late = [(max(came) - at) * 1e3 for came, at in zip(times, said.values(), strict=True)]
    note = f"p99 {p99(spreads):.0f} ms; publish to the last {p50(late):.0f} ms; opened in {opened:.1f} s"
    what = f"progress to {FOLLOWERS} SSE clients, first to last, p50"
    yield Figure("gateway", what, p50(spreads), "ms", FAN_OUT_AIM_MS, note=note)
    for follower in followers:
        follower.transport.close()


async def _publish(bus: Bus, key: JobKey) -> dict[int, float]:
    """Publish progress as a runner does. Return the publish time of each offset."""
    said = {}
    for number in range(1, MESSAGES + 1):
        said[number] = time.perf_counter()
        await bus.feed.publish(
            key, ProgressMessage(FeedPosition(1, 1, number), utc_now(), number / MESSAGES, "render", number, MESSAGES)
        )
        await asyncio.sleep(EVERY_S)
    return said


async def rows() -> AsyncIterator[Figure]:
    """Yield the figures. Each measurement has its own installation."""
    for owners in (100, 1):
        async for row in _owner_of(owners):
            yield row
    async with run_installation(**LIMITS) as made, made.installation.bus() as bus:
        async for row in _fan_out(made, bus):
            yield row
