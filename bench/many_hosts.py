"""Measure what 50 hosts cost the edge, and how much longer a claim takes than with one host.

The hosts are simulated (bench/simulated_hosts.py), broker and edge are real. One host and 50 take turns at single jobs
that find a free slot, so that noise on the machine affects both. Then 50 hosts work off SLOW_JOBS jobs of SLOW_JOB_S,
and JOBS jobs of JOB_S, that were submitted before. BENCH_JOBS changes the number of the latter.

All hosts run in one process, on the cores of edge and broker. That process needs a quarter of a core for 24 jobs a
second (2026-11-30), so it is not the limit: the cores are, as soon as other work fills them. So the pause between two
jobs has an aim at the slow rate only; at the fast rate it shows how full this machine is. Each row says how many cores
were busy and with what. A ratio counts only if hosts, edge and broker found a free core: under other work, 50 hosts in
one process wait for each other, which hosts on machines of their own do not.
"""

import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from msgspec import Struct
from msgspec.structs import replace

from bench.figures import Figure, p50, p99
from bench.installation import BenchInstallation, create_jobs, make_job, run_installation
from bench.processor import ProcessorTimes
from bench.simulated_fleet import ONLINE_TIMEOUT_S, SimulatedHosts, StallWatch, run_hosts
from schemas.job import Job, JobKey, Status
from tests.support.wait import wait_for

BENCH = "many_hosts"
HOSTS = 50
JOBS = int(os.environ.get("BENCH_JOBS", "10000"))
JOBS_ALONE = 25
JOB_S = 2.0
SLOW_JOBS = 250
SLOW_JOB_S = 10.0
ROUNDS = 4
SINGLE_JOBS = 40  # of each number of hosts, in each round
CPU_AIM = 0.1
LATENCY_AIM = 2.0
WORK_TIMEOUT_S = 3600.0


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
    """Jobs that were worked off from a queue. `pauses`: from a job's end to the next start in the same slot.

    `times`: the processor times meanwhile.
    """

    jobs: int
    took_s: float
    times: ProcessorTimes
    pauses: list[float]

    @property
    def edge_cores(self) -> float:
        """The processor time of the edge in each second."""
        return self.times.processes["edge"] / self.took_s


async def _missing(made: BenchInstallation, running: SimulatedHosts, numbers: range) -> str:
    """Describe the first of the jobs that did not start."""
    started = {start.job_id for start in running.starts}
    return await _describe(made, [key for number in numbers if (key := _job(number).key).id not in started])


async def _describe(made: BenchInstallation, keys: list[JobKey]) -> str:
    """Return how many jobs there are, and the events of the first ones."""
    async with made.installation.bus() as bus:
        histories = [await bus.job_store.history(key) for key in keys[:5]]
    events = ["; ".join(str(entry.record.event) for entry in history) for history in histories]
    return f"{len(keys)} jobs, {dict(zip((key.id for key in keys), events, strict=False))}"


async def _work_off(made: BenchInstallation, hosts: int, numbers: range, job_s: float) -> Work:
    """Work off jobs that wait already; count from when each host has one. Raises SystemExit if one starts twice.

    Jobs of an earlier call whose hosts were killed may start again during this one, and do not count.
    """
    await create_jobs(made, map(_job, numbers))
    keys = {(key := _job(number).key).id: key for number in numbers}
    async with run_hosts(made, hosts, job_s) as running:
        stall_watch = StallWatch(made, running)
        broker = made.installation.server.pid
        pids = {"edge": made.installation.edge.pid, "simulated hosts": running.process.pid, "bench": os.getpid()}
        pids |= {"broker": broker} if broker else {}

        def count_starts() -> Counter[str]:
            return Counter(start.job_id for start in running.starts if start.job_id in keys)

        async def begun() -> bool:
            await stall_watch.check()
            return len(count_starts()) >= hosts

        async def done() -> bool:
            try:
                await stall_watch.check()
            except SystemExit as error:
                raise SystemExit(f"{error}; missing: {await _missing(made, running, numbers)}") from None
            return len(count_starts()) >= len(keys)

        await wait_for(begun, timeout_s=ONLINE_TIMEOUT_S)
        began, before = time.monotonic(), ProcessorTimes.read(pids)
        await wait_for(done, timeout_s=WORK_TIMEOUT_S, interval_s=0.5)
        took, used = time.monotonic() - began, ProcessorTimes.read(pids).since(before)
        if again := [keys[job_id] for job_id, times in count_starts().items() if times > 1]:
            raise SystemExit(f"bench: started more than once: {await _describe(made, again)}")
        pauses = [start.at - start.previous_ended_at for start in running.starts if start.previous_ended_at]
    return Work(len(keys) - hosts, took, used, pauses)


async def rows() -> AsyncIterator[Figure]:
    """Yield latencies of claims, then the pauses between jobs at two rates, then the edge's cost."""
    async with run_installation() as made:
        one: list[float] = []
        many: list[float] = []
        for _ in range(ROUNDS):
            one += await _claim_latencies(made, 1)
            many += await _claim_latencies(made, HOSTS)
        yield _ratio("submit to start where a slot is free", many, one, LATENCY_AIM)
        slow_from, fast_from = JOBS_ALONE, JOBS_ALONE + SLOW_JOBS
        alone = await _work_off(made, 1, range(slow_from), JOB_S)
        slow = await _work_off(made, HOSTS, range(slow_from, fast_from), SLOW_JOB_S)
        yield _pause(slow, alone, LATENCY_AIM)
        work = await _work_off(made, HOSTS, range(fast_from, fast_from + JOBS), JOB_S)
    yield _pause(work, alone, None)
    rate, possible = work.jobs / work.took_s, HOSTS / JOB_S
    note = (
        f"{work.jobs} jobs of {JOB_S:g} s on average, {rate:.1f}/s of {possible:.1f}/s possible; "
        f"{1e3 * work.edge_cores / rate:.2f} ms a job; {work.times.describe(work.took_s)}"
    )
    yield Figure(BENCH, f"edge's processor time, {HOSTS} hosts", work.edge_cores, "cores", CPU_AIM, note=note)


def _pause(work: Work, alone: Work, aim: float | None) -> Figure:
    what = f"pause of a slot between two jobs, {work.jobs / work.took_s:.0f} jobs a second"
    figure = _ratio(what, work.pauses, alone.pauses, aim)
    return replace(figure, note=f"{figure.note}; {work.times.describe(work.took_s)}")


def _ratio(what: str, many: list[float], one: list[float], aim: float | None) -> Figure:
    p50s, p99s = ([1e3 * of(values) for values in (one, many)] for of in (p50, p99))
    note = f"p50 {p50s[0]:.1f} and {p50s[1]:.1f} ms, p99 {p99s[0]:.0f} and {p99s[1]:.0f} ms"
    return Figure(BENCH, f"{what}, {HOSTS} hosts against one", p50s[1] / p50s[0], "x", aim, note=note)
