"""Measure what 50 hosts cost the edge, and how much longer a claim takes than with one host.

The hosts are simulated (bench/simulated_hosts.py), broker and edge are real. One host and 50 take turns at single jobs
that find a free slot, so that noise on the machine affects both. Then 50 hosts work off JOBS jobs that were submitted
before. BENCH_JOBS changes their number.
"""

import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import anyio
from anyio.streams.text import TextReceiveStream
from msgspec import Struct, field

from bench.figures import Figure, p50, p99
from bench.installation import BenchInstallation, create_jobs, make_job, run_installation
from schemas.job import Job
from schemas.status import Status
from tests.support.installation import ROOT
from tests.support.wait import wait_for

BENCH = "many_hosts"
HOSTS = 50
JOBS = int(os.environ.get("BENCH_JOBS", "10000"))
JOBS_ALONE = 25
JOB_S = 2.0
ROUNDS = 4
SINGLE_JOBS = 40  # of each number of hosts, in each round
CPU_AIM = 0.1
LATENCY_AIM = 2.0
WORK_TIMEOUT_S = 3600.0
STALL_TIMEOUT_S = 60.0
ONLINE_TIMEOUT_S = 60.0


class JobStart(Struct, frozen=True):
    """When a job started at a host, and when the host's previous job had ended (0: it had none)."""

    host: str
    job_id: str
    at: float
    previous_ended_at: float


class SimulatedHosts(Struct):
    """A running process of hosts, and the starts that it has reported."""

    pid: int
    starts: list[JobStart] = field(default_factory=list)

    async def wait_for_start(self, job_id: str) -> JobStart:
        """Return host and time of the job's start, once a simulated host has printed them."""

        async def started() -> JobStart | None:
            return next((start for start in reversed(self.starts) if start.job_id == job_id), None)

        return await wait_for(started, interval_s=0.005)

    def cpu_s(self) -> float:
        """Return the processor time so far."""
        return _cpu_s(self.pid)


def _cpu_s(pid: int) -> float:
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()  # noqa: PTH123, SIM115
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def run_hosts(made: BenchInstallation, count: int, job_s: float) -> AsyncIterator[SimulatedHosts]:
    """Run `count` simulated hosts until the end of the block."""
    broker = made.installation.broker_settings("runner")
    environ = {"BENCH_BROKER_URL": broker.url, "BENCH_BROKER_PASSWORD": broker.password}
    argv = [sys.executable, "-m", "bench.simulated_hosts", str(count), str(job_s)]
    async with (
        await anyio.open_process(
            argv, env=os.environ | environ, cwd=ROOT, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        ) as process,
        anyio.create_task_group() as tasks,
    ):
        hosts = SimulatedHosts(process.pid)

        async def read() -> None:
            assert process.stdout is not None
            rest = ""
            async for text in TextReceiveStream(process.stdout):
                *lines, rest = (rest + text).split("\n")
                for line in lines:
                    host, job_id, at, ended_at = line.split()
                    hosts.starts.append(JobStart(host, job_id, float(at), float(ended_at)))

        tasks.start_soon(read)
        await _wait_until_online(made, count)
        yield hosts
        process.kill()
        tasks.cancel_scope.cancel()


async def _wait_until_online(made: BenchInstallation, count: int) -> None:
    async with made.installation.bus() as bus:

        async def online() -> bool:
            return len(await bus.heartbeats.rows()) >= count

        await wait_for(online, timeout_s=ONLINE_TIMEOUT_S, interval_s=0.2)


async def _claim_latencies(made: BenchInstallation, hosts: int) -> list[float]:
    """Return the seconds from a submit to the start of its job, each with a free slot."""
    took = []
    async with run_hosts(made, hosts, 0.0) as running:
        for _ in range(SINGLE_JOBS):
            began = time.monotonic()
            job = await made.client.submit("echo", text="x")
            took.append((await running.wait_for_start(job.id)).at - began)
            await made.client.wait(job.id)
    return took[SINGLE_JOBS // 8 :]


def _job(number: int) -> Job:
    return make_job(number, status=Status.QUEUED, input={"text": "hello"}, queued_at=datetime.now(UTC))


class Work(Struct, frozen=True):
    """Jobs that were worked off from a queue. Seconds, and processor seconds of the edge and of the simulated hosts.

    `pauses`: from the end of a job to the start of the next one in the same slot.
    """

    jobs: int
    took_s: float
    edge_cpu_s: float
    hosts_cpu_s: float
    pauses: list[float]


async def _missing(made: BenchInstallation, running: SimulatedHosts, numbers: range) -> str:
    """Describe the first of the jobs that did not start."""
    started = {start.job_id for start in running.starts}
    keys = [_job(number).key for number in numbers]
    lost = [key for key in keys if key.id not in started]
    async with made.installation.bus() as bus:
        histories = [await bus.job_store.history(key) for key in lost[:5]]
    events = ["; ".join(str(entry.record.event) for entry in history) for history in histories]
    return f"{len(lost)} jobs, {dict(zip((key.id for key in lost), events, strict=False))}"


async def _work_off(made: BenchInstallation, hosts: int, numbers: range) -> Work:
    """Work off jobs that wait already; count from when each host has one. Raises SystemExit if one starts twice."""
    await create_jobs(made, map(_job, numbers))
    async with run_hosts(made, hosts, JOB_S) as running:

        async def begun() -> bool:
            return len(running.starts) >= hosts

        async def done() -> bool:
            if time.monotonic() - running.starts[-1].at > STALL_TIMEOUT_S:
                raise SystemExit(f"bench: no job starts any more; missing: {await _missing(made, running, numbers)}")
            return len(running.starts) >= len(numbers)

        await wait_for(begun, timeout_s=ONLINE_TIMEOUT_S)
        began, edge_before, hosts_before = time.monotonic(), made.edge_cpu_s(), running.cpu_s()
        await wait_for(done, timeout_s=WORK_TIMEOUT_S, interval_s=0.5)
        took, edge, simulated = time.monotonic() - began, made.edge_cpu_s(), running.cpu_s()
        if len({start.job_id for start in running.starts}) != len(numbers):
            raise SystemExit("bench: a job started twice: read the log of the edge")
        pauses = [start.at - start.previous_ended_at for start in running.starts if start.previous_ended_at]
    return Work(len(numbers) - hosts, took, edge - edge_before, simulated - hosts_before, pauses)


async def rows() -> AsyncIterator[Figure]:
    """Yield latencies of claims, then the edge's cost."""
    async with run_installation() as made:
        one: list[float] = []
        many: list[float] = []
        for _ in range(ROUNDS):
            one += await _claim_latencies(made, 1)
            many += await _claim_latencies(made, HOSTS)
        yield _ratio("submit to start where a slot is free", many, one)
        alone = await _work_off(made, 1, range(JOBS_ALONE))
        work = await _work_off(made, HOSTS, range(JOBS_ALONE, JOBS_ALONE + JOBS))
    yield _ratio("pause of a slot between two jobs", work.pauses, alone.pauses)
    rate, possible = work.jobs / work.took_s, HOSTS / JOB_S
    note = (
        f"{work.jobs} jobs of {JOB_S:g} s, {rate:.1f}/s of {possible:.1f}/s possible; "
        f"{1e3 * work.edge_cpu_s / work.jobs:.2f} ms a job; simulated hosts {work.hosts_cpu_s / work.took_s:.2f} cores"
    )
    cores = work.edge_cpu_s / work.took_s
    yield Figure(BENCH, f"edge's processor time, {HOSTS} hosts", cores, "cores", CPU_AIM, note=note)


def _ratio(what: str, many: list[float], one: list[float]) -> Figure:
    p50s, p99s = ([1e3 * of(values) for values in (one, many)] for of in (p50, p99))
    note = f"p50 {p50s[0]:.1f} and {p50s[1]:.1f} ms, p99 {p99s[0]:.0f} and {p99s[1]:.0f} ms"
    return Figure(BENCH, f"{what}, {HOSTS} hosts against one", p50s[1] / p50s[0], "x", LATENCY_AIM, note=note)
