"""One synced write of a job's record (1.2 KB): to one broker, and to three that keep it three times.

All servers are on this machine's disk and cores, each at a loopback address of its own.
"""

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

from bench.bus import recorded
from bench.load import Load, timed
from bench.rows import Row, p50
from bus.connection import open_edge
from bus.port import Bus
from bus.server import Server, serving
from bus.settings import BrokerSettings
from tests.cluster.brokers import Brokers
from tests.cluster.machines import Machine

HERE = tuple(Machine(number, f"127.0.9.{number}", (), "") for number in (1, 2, 3))
COUNTS = {1: 500, 64: 6000}


async def _writes(bus: Bus, count: int, at_once: int) -> Load:
    async def write(number: int) -> None:
        record = recorded(f"at-{at_once}-{number}")
        await bus.records.create(record.job.key, record)

    return await timed(write, count, at_once)


async def _rows(servers: int, settings: BrokerSettings) -> AsyncIterator[Row]:
    async with open_edge(settings) as bus:
        await _writes(bus, 200, 2)
        for at_once, count in COUNTS.items():
            made = await _writes(bus, count, at_once)
            what = f"records written to {servers} broker{'s' * (servers > 1)}, {at_once} at once"
            yield Row("replicas", what, made.per_s, "/s", note=f"p50 {p50(made.latencies) * 1e3:.2f} ms")


async def rows() -> AsyncIterator[Row]:
    """Rates and median latencies, one server first."""
    with tempfile.TemporaryDirectory(prefix="lamplighter-replicas-") as folder:
        async with serving(Server(Path(folder) / "one")) as one:
            async for row in _rows(1, BrokerSettings(one.url, "edge", one.passwords["edge"], one.monitor)):
                yield row
        async with AsyncExitStack() as stack:
            three = Brokers(Path(folder) / "three", HERE)
            stack.push_async_callback(three.close)
            await three.form()
            async for row in _rows(len(HERE), three.settings("edge")):
                yield row
