"""Measure the bus with a real, idle broker on this machine that syncs every write. Prints a JSON line, milliseconds.

submit: create the record, publish the pointer, wake. take: sweep three priorities, read the record, claim it.
follow: from the publish of a progress note until a follower has it. Run: .venv/bin/python -m bench.bus
"""

import json
import logging
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import anyio
import structlog

from bus.interface import Bus
from bus.open import open_edge, open_runner
from bus.server.process import NatsServer, run_server
from bus.settings import BrokerSettings
from schemas.events import FeedPosition, JobRecord, ProgressMessage, Started, Submitted
from schemas.job import PRIORITIES, Claim, Job, JobKey, Status
from schemas.lifecycle import next_record

JOBS = 300
WARM_UP = 20
NOW = datetime(2026, 11, 21, tzinfo=UTC)


def sample_record(job_id: str) -> JobRecord:
    """Return the record of a job as a submit writes it: 1.2 KB."""
    job = Job(
        id=job_id,
        owner="bench",
        endpoint="echo",
        pool="echo",
        status=Status.QUEUED,
        request_digest="0" * 64,
        input={"text": "x" * 1000},
        created_at=NOW,
    )
    return JobRecord(NOW, Submitted(), job)


async def submit_one(edge: Bus, job_id: str) -> None:
    record = sample_record(job_id)
    await edge.job_store.create(record.job.key, record)
    await edge.job_queue.publish(record.job.pointer)


async def claim_one(runner: Bus) -> None:
    for priority in PRIORITIES:
        delivery = await runner.job_queue.fetch("echo", priority)
        if delivery is not None:
            break
    else:
        raise RuntimeError("a job that was submitted is not there")
    entry = await runner.job_store.read(delivery.pointer.key)
    if entry is None:
        raise RuntimeError("a job in the queue has no record")
    started = next_record(entry.record.job, Started(Claim("bench", "one", 1)), NOW)
    await runner.job_store.update(delivery.pointer.key, started, entry.revision)


async def _follow(edge: Bus, runner: Bus) -> list[float]:
    key, took = JobKey("bench", "followed"), list[float]()
    stream = edge.feed.follow(key.owner, key.id)
    for offset in range(WARM_UP + JOBS):
        began = time.perf_counter()
        await runner.feed.publish(key, ProgressMessage(FeedPosition(1, 1, offset), NOW, 0.5))
        await anext(stream)
        took.append(time.perf_counter() - began)
    return took[WARM_UP:]


def _row(name: str, took: list[float]) -> dict[str, float]:
    ms = sorted(1000 * seconds for seconds in took)
    return {f"{name}_p50_ms": round(statistics.median(ms), 3), f"{name}_p99_ms": round(ms[int(len(ms) * 0.99)], 3)}


async def _timed(count: int, work: Callable[[int], Awaitable[None]]) -> list[float]:
    took = []
    for number in range(WARM_UP + count):
        began = time.perf_counter()
        await work(number)
        took.append(time.perf_counter() - began)
    return took[WARM_UP:]


async def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory() as folder:
        async with run_server(NatsServer(Path(folder))) as server:
            settings = {
                user: BrokerSettings(server.url, user, server.passwords[user], server.monitor_url)
                for user in ("edge", "runner")
            }
            async with open_edge(settings["edge"]) as edge, open_runner(settings["runner"]) as runner:
                await edge.job_queue.ensure_consumers(["echo"])
                submit = await _timed(JOBS, lambda number: submit_one(edge, f"job-{number}"))
                take = await _timed(JOBS, lambda _: claim_one(runner))
                follow = await _follow(edge, runner)
    print(json.dumps(_row("submit", submit) | _row("take", take) | _row("follow", follow)))


if __name__ == "__main__":
    anyio.run(main)
