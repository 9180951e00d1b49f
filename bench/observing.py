"""Measure what the request line and traces cost a submit at one connection, against an edge with none of both.

The edges run at the same time and take turns, so that a change of the machine's load meets all of them.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from bench.figures import Figure, p50
from bench.http_load import post_request, run_load
from bench.installation import BenchInstallation, run_installation
from bus.spans import NO_SPANS, current_traceparent, enter_trace, span

BODY = b'{"endpoint":"echo","input":{"text":"hello"}}'
ROUNDS = 10
REQUESTS = 200  # of one round of one edge
CALLS = 100_000
AIM_TOGETHER = 1.03
AIM_OFF = 1.005
HEADERS = [(b"host", b"edge"), (b"authorization", b"Bearer key"), (b"content-type", b"application/json")]


@asynccontextmanager
async def _receiver() -> AsyncIterator[str]:
    """Run a receiver that accepts everything and reads nothing of it; yield its URL."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _read_head(reader):
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def _read_head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


def _processor_s(made: BenchInstallation) -> float:
    """Return the processor time of the edge so far (proc(5): utime and stime, in ticks of 10 ms)."""
    with open(f"/proc/{made.installation.edge.pid}/schedstat") as file:  # noqa: PTH123 - nanoseconds of the main thread
        return int(file.read().split()[0]) / 1e9


def _off_s() -> float:
    """Return the time of what a submit does for traces where they are off."""
    began = time.perf_counter()
    for _ in range(CALLS):
        enter_trace(HEADERS)
        with span(NO_SPANS, "submit", current_traceparent(), owner="ann", job_id="a"):
            pass
    return (time.perf_counter() - began) / CALLS


async def rows() -> AsyncIterator[Figure]:
    """Yield the ratios, each the median over rounds in which the edges took turns."""
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(_receiver())
        environs = {
            "none": {"LAMPLIGHTER_LOG_LEVEL": "warning"},
            "request line": {},
            "request line and traces": {"LAMPLIGHTER_TRACES__ENDPOINT": receiver},
        }
        made = {name: await stack.enter_async_context(run_installation(**one)) for name, one in environs.items()}
        latency_s: dict[str, list[float]] = {name: [] for name in made}
        processor_s: dict[str, list[float]] = {name: [] for name in made}
        for number in range(ROUNDS + 1):
            for name, one in made.items():
                before = _processor_s(one)
                ours = await run_load(one.port, [post_request("/v1/jobs", one.key, BODY)] * REQUESTS, connections=1)
                if number:  # the first round warms up
                    latency_s[name].append(p50(ours.latencies))
                    processor_s[name].append((_processor_s(one) - before) / REQUESTS)
    none_s = p50(latency_s["none"])
    for name in ("request line", "request line and traces"):
        ratio = p50([ours / none for ours, none in zip(latency_s[name], latency_s["none"], strict=True)])
        times = (none_s, p50(latency_s[name]), p50(processor_s["none"]), p50(processor_s[name]))
        words = "p50 {:.2f} ms without, {:.2f} ms with; the edge's processor {:.2f} ms, {:.2f} ms"
        note = words.format(*(1e3 * one for one in times))
        yield Figure("observing", f"submit with {name}, against none", ratio, "x", AIM_TOGETHER, note=note)
    off_s = _off_s()
    ratio, note = (none_s + off_s) / none_s, f"{off_s * 1e6:.1f} µs of {none_s * 1e3:.2f} ms"
    yield Figure("observing", "submit with traces off, against no such code", ratio, "x", AIM_OFF, note=note)
