"""Measure a synced write of a job's record (1.2 KB) to a single broker, and to a cluster of three with three replicas.

All servers share this machine's disk and cores. Each has its own loopback address.
"""

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

from bench.bus import sample_record
from bench.figures import Figure, p50
from bench.http_load import LoadResult, run_timed
from bus.interface import Bus
from bus.open import open_edge
from bus.server.process import NatsServer, run_server
from bus.settings import BrokerSettings
from tests.cluster.broker_cluster import BrokerCluster
from tests.cluster.namespace_machines import NamespaceMachine

HERE = tuple(NamespaceMachine(number, f"127.0.9.{number}", (), "") for number in (1, 2, 3))
COUNTS = {1: 500, 64: 6000}


async def _writes(bus: Bus, count: int, at_once: int) -> LoadResult:
    async def write(number: int) -> None:
        record = sample_record(f"at-{at_once}-{number}")
        await bus.job_store.create(record.job.key, record)

    return await run_timed(write, count, at_once)


async def _rows(servers: int, settings: BrokerSettings) -> AsyncIterator[Figure]:
    async with open_edge(settings) as bus:
        await _writes(bus, 200, 2)
        for at_once, count in COUNTS.items():
            made = await _writes(bus, count, at_once)
            what = f"records written to {servers} broker{'s' * (servers > 1)}, {at_once} at once"
            yield Figure("replicas", what, made.per_s, "/s", note=f"p50 {p50(made.latencies) * 1e3:.2f} ms")


async def rows() -> AsyncIterator[Figure]:
    """Yield rates and median latencies, first of the single server."""
    with tempfile.TemporaryDirectory(prefix="lamplighter-replicas-") as folder:
        async with run_server(NatsServer(Path(folder) / "one")) as one:
            async for row in _rows(1, BrokerSettings(one.url, "edge", one.passwords["edge"], one.monitor_url)):
                yield row
        async with AsyncExitStack() as stack:
            three = BrokerCluster(Path(folder) / "three", HERE)
            stack.push_async_callback(three.close)
            await three.form()
            async for row in _rows(len(HERE), three.settings("edge")):
                yield row
