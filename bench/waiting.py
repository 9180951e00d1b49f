"""100,000 jobs waiting: what a submit and a list page cost then, against the empty edge, and the edge's memory."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import anyio

from bench.load import get, load, post
from bench.rows import Row, p50
from bench.scene import Scene, scene
from bench.submit import BODY
from lamplighter.wire import Call, plain
from schemas.events import Recorded, Submitted
from schemas.job import Job
from schemas.words import Status

JOBS = 100_000
OWNERS = 100
SAMPLES = 300
AT_ONCE = 64
METRICS = Call(method="GET", path="/metrics", read=plain)


def _job(number: int) -> Job:
    now = datetime.now(UTC)
    return Job(
        id=f"waiting-{number}",
        owner=f"owner-{number % OWNERS}",
        endpoint="echo",
        pool="echo",
        status=Status.QUEUED,
        digest=f"{number:064x}",
        input={"text": "hello"},
        created_at=now,
        queued_at=now,
    )


async def _fill(made: Scene) -> None:
    """Write the records as submits would; the reconciler moves each owner's first ones into JOBS."""
    async with made.installation.bus() as bus:
        numbers = iter(range(JOBS))

        async def worker() -> None:
            for number in numbers:
                job = _job(number)
                await bus.records.create(job.key, Recorded(job.created_at, Submitted(), job))

        async with anyio.create_task_group() as tasks:
            for _ in range(AT_ONCE):
                tasks.start_soon(worker)


async def _settled(made: Scene) -> None:
    """The edge's index has them all: its metrics count them."""
    while True:
        text = await made.client.call(METRICS)
        counted = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if 'status="queued"' in line]
        if sum(counted) >= JOBS:
            return
        await anyio.sleep(0.5)


async def rows() -> AsyncIterator[Row]:
    """Medians over one connection."""
    async with scene() as made:
        submit, page = post("/v1/jobs", made.key, BODY), get("/v1/jobs?limit=50", made.key)
        await load(made.port, [submit] * 100, 4)
        empty = p50((await load(made.port, [submit] * SAMPLES, 1)).latencies)
        listed = p50((await load(made.port, [page] * SAMPLES, 1, b" 200 ")).latencies)
        await _fill(made)
        await _settled(made)
        full = p50((await load(made.port, [submit] * SAMPLES, 1)).latencies)
        note = f"{empty * 1e3:.2f} ms empty, {full * 1e3:.2f} ms with {JOBS} waiting"
        yield Row("waiting", "submit p50 against the empty edge", full / empty, "x", 1.3, note=note)
        paged = p50((await load(made.port, [page] * SAMPLES, 1, b" 200 ")).latencies)
        yield Row("waiting", "list page of 50", paged * 1e3, "ms", note=f"{listed * 1e3:.2f} ms empty")
        yield Row("waiting", "edge peak RSS", made.installation.edge.peak_rss_mb(), "MB", 200)
