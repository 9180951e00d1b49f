"""A process of simulated hosts (bench/simulated_hosts.py), as a bench sees it: its job starts, and why none comes."""

import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import httpx2
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream
from msgspec import Struct, field

from bench.installation import BenchInstallation
from tests.support.installation import ROOT
from tests.support.wait import wait_for

ONLINE_TIMEOUT_S = 60.0
QUIET_S = 10.0  # after so long without a start, the state of the queue is printed
STALL_TIMEOUT_S = 60.0
LOG_TAIL_BYTES = 2000
QUEUE = "JOBS"
COUNTS = ("num_pending", "num_ack_pending", "num_redelivered", "num_waiting")


class JobStart(Struct, frozen=True):
    """When a job started at a host, and when the host's previous job had ended (0: it had none)."""

    host: str
    job_id: str
    at: float
    previous_ended_at: float


class SimulatedHosts(Struct):
    """A running process of hosts, and the starts that it has reported. `log`: what it wrote to stderr."""

    process: Process
    log: Path
    starts: list[JobStart] = field(default_factory=list)

    async def wait_for_start(self, job_id: str) -> JobStart:
        """Return host and time of the job's start, once a simulated host has printed them."""

        async def started() -> JobStart | None:
            self.check_alive()
            return next((start for start in reversed(self.starts) if start.job_id == job_id), None)

        return await wait_for(started, interval_s=0.005)

    def check_alive(self) -> None:
        """Raise SystemExit with the end of the log if the process has ended: no job would start any more."""
        if self.process.returncode is not None:
            tail = self.log.read_text(errors="replace")[-LOG_TAIL_BYTES:]
            raise SystemExit(f"bench: the simulated hosts have ended with {self.process.returncode}:\n{tail}")


@asynccontextmanager
async def run_hosts(made: BenchInstallation, count: int, job_s: float) -> AsyncIterator[SimulatedHosts]:
    """Run `count` simulated hosts until the end of the block."""
    broker = made.installation.broker_settings("runner")
    environ = {"BENCH_BROKER_URL": broker.url, "BENCH_BROKER_PASSWORD": broker.password}
    argv = [sys.executable, "-m", "bench.simulated_hosts", str(count), str(job_s)]
    started_at = datetime.now(UTC)
    with tempfile.NamedTemporaryFile() as log:
        async with (
            await anyio.open_process(argv, env=os.environ | environ, cwd=ROOT, stderr=log, stdin=None) as process,
            anyio.create_task_group() as tasks,
        ):
            hosts = SimulatedHosts(process, Path(log.name))
            tasks.start_soon(_read_starts, hosts)
            await _wait_until_online(made, hosts, count, started_at)
            yield hosts
            if process.returncode is None:
                process.kill()
            tasks.cancel_scope.cancel()


async def _read_starts(hosts: SimulatedHosts) -> None:
    assert hosts.process.stdout is not None
    rest = ""
    async for text in TextReceiveStream(hosts.process.stdout):
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            host, job_id, at, ended_at = line.split()
            hosts.starts.append(JobStart(host, job_id, float(at), float(ended_at)))


async def _wait_until_online(made: BenchInstallation, hosts: SimulatedHosts, count: int, started_at: datetime) -> None:
    """Wait for the first heartbeats. Those of hosts that were killed before `started_at` may still be stored."""
    async with made.installation.bus() as bus:

        async def online() -> bool:
            hosts.check_alive()
            rows = (await bus.heartbeats.rows()).values()
            return sum(row.value.at >= started_at for row in rows) >= count

        await wait_for(online, timeout_s=ONLINE_TIMEOUT_S, interval_s=0.2)


class StallWatch:
    """Prints the state of queue and hosts when no job has started for QUIET_S; ends the bench after STALL_TIMEOUT_S."""

    def __init__(self, made: BenchInstallation, hosts: SimulatedHosts) -> None:
        self._made = made
        self._hosts = hosts
        self._described_at = 0.0

    async def check(self) -> None:
        """Raise SystemExit if no job starts any more, or if the hosts have ended."""
        self._hosts.check_alive()
        now, last_start = time.monotonic(), max((start.at for start in self._hosts.starts), default=0.0)
        quiet_s = now - last_start
        if not last_start or quiet_s < QUIET_S or now - self._described_at < QUIET_S:
            return
        self._described_at = now
        described = f"no job has started for {quiet_s:.0f} s: {await self._describe()}"
        print(f"bench: {described}", file=sys.stderr, flush=True)
        if quiet_s >= STALL_TIMEOUT_S:
            raise SystemExit(f"bench: {described}")

    async def _describe(self) -> str:
        consumers = await read_queue_consumers(self._made)
        async with self._made.installation.bus() as bus:
            heartbeats = [row.value for row in (await bus.heartbeats.rows()).values()]
        idle = [heartbeat.host for heartbeat in heartbeats if not heartbeat.running]
        refusing = {one.host: one.unschedulable for one in heartbeats if one.unschedulable}
        lanes = "; ".join(f"{name} {counts}" for name, counts in consumers.items() if any(counts.values()))
        return (
            f"{lanes or 'all queues are empty'}; {len(heartbeats)} hosts beat, idle: {idle}, unschedulable: {refusing}"
        )


async def read_queue_consumers(made: BenchInstallation) -> dict[str, dict[str, int]]:
    """Return the counts of each consumer of the queue, as the broker's monitor reports them."""
    monitor = made.installation.broker_settings("edge").monitor
    async with httpx2.AsyncClient(base_url=monitor, trust_env=False) as client:
        answer = await client.get("/jsz", params={"consumers": "true", "accounts": "true"})
    accounts: list[dict[str, Any]] = json.loads(answer.content)["account_details"]
    streams = [stream for account in accounts for stream in account.get("stream_detail", ())]
    return {
        consumer["name"]: {count: consumer.get(count, 0) for count in COUNTS}
        for stream in streams
        if stream["name"] == QUEUE
        for consumer in stream.get("consumer_detail", ())
    }
