"""Measure how a crowd of connections affects another tenant's submits and the edge's memory.

The crowd is 2,000 idle, 200 slow and 1,000 streaming connections. A separate process opens them from the loopback
address. The limit per address does not apply there, so this measures the other limits.
"""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.streams.text import TextReceiveStream

from bench.figures import Figure, p50, p99
from bench.gateway import make_keys
from bench.http_load import post_request, run_load
from bench.installation import BenchInstallation, run_installation
from bench.open_connections import IDLE, SLOW, STREAMS
from bench.submit import BODY

SUBMITS = 2000
CONNECTIONS = 4
SLOWER_AIM = 2.0
MEMORY_AIM_MB = 200.0
ROOT = Path(__file__).parents[1]


@asynccontextmanager
async def _hold_connections(made: BenchInstallation, key: str) -> AsyncIterator[str]:
    """Hold the connections open while the block runs. Yield a summary of the answers to the streams."""
    argv = [sys.executable, "-m", "bench.open_connections", str(made.port), key]
    async with await anyio.open_process(argv, stderr=None, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            said = ""
            with anyio.fail_after(120):
                async for text in TextReceiveStream(process.stdout):
                    said += text
                    if "\n" in said:
                        break
            counts = json.loads(said)
            yield ", ".join(f"{count} x {line}" for line, count in counts.items())
        finally:
            process.kill()


async def _submits(made: BenchInstallation) -> list[float]:
    return (await run_load(made.port, [post_request("/v1/jobs", made.key, BODY)] * SUBMITS, CONNECTIONS)).latencies


async def rows() -> AsyncIterator[Figure]:
    """Measure submits before, during and after the crowd. The last figure shows whether the machine got slower."""
    async with run_installation() as made:
        (key,) = await make_keys(made, 1)
        await _submits(made)
        alone = await _submits(made)
        async with _hold_connections(made, key) as answers:
            beside = await _submits(made) + await _submits(made)
            memory = made.installation.edge.peak_rss_mb()
        alone += await _submits(made)
        times = p99(beside) / p99(alone)
        what = f"{IDLE} idle, {SLOW} slow, {STREAMS} streams"
        note = (
            f"p99 {p99(alone) * 1e3:.1f} ms alone, {p99(beside) * 1e3:.1f} ms beside them; "
            f"p50 {p50(alone) * 1e3:.1f} and {p50(beside) * 1e3:.1f} ms; {answers}"
        )
        yield Figure("strangers", f"submit p99 beside {what}", times, "x", SLOWER_AIM, note=note)
        yield Figure("strangers", f"edge peak memory beside {what}", memory, "MB", MEMORY_AIM_MB)
