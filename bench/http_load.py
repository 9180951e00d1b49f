"""Send HTTP requests over keep-alive connections, with as little work in the client as Python allows."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct


class LoadResult(Struct, frozen=True):
    """The latency of each request and the duration of the whole run, in seconds."""

    latencies: list[float]
    seconds: float

    @property
    def per_s(self) -> float:
        """The rate in requests per second over the whole run."""
        return len(self.latencies) / self.seconds


async def _send_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, expected: bytes
) -> bytes:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if expected not in head.split(b"\r\n", 1)[0]:
        raise SystemExit(f"the edge answered {head[:200]!r}")
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    return await reader.readexactly(length)


async def run_timed(call: Callable[[int], Awaitable[object]], count: int, concurrency: int) -> LoadResult:
    """Await `call` with each number below `count`, `concurrency` calls at the same time."""
    waiting, latencies = iter(range(count)), list[float]()

    async def worker() -> None:
        for number in waiting:
            began = time.perf_counter()
            await call(number)
            latencies.append(time.perf_counter() - began)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(concurrency):
            tasks.create_task(worker())
    return LoadResult(latencies, time.perf_counter() - began)


async def run_load(port: int, requests: Sequence[bytes], connections: int, expected: bytes = b" 202 ") -> LoadResult:
    """Send `requests` over `connections` connections. Each connection sends one request after the other."""
    waiting, latencies = iter(requests), list[float]()

    async def worker() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for request in waiting:
            began = time.perf_counter()
            await _send_request(reader, writer, request, expected)
            latencies.append(time.perf_counter() - began)
        writer.close()
        await writer.wait_closed()

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(worker())
    return LoadResult(latencies, time.perf_counter() - began)


def post_request(path: str, key: str, body: bytes) -> bytes:
    """Return a POST request with a JSON body, as bytes."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def get_request(path: str, key: str) -> bytes:
    """Return a GET request as bytes."""
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
