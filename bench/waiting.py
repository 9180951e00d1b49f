"""Measure a submit, a list page and the edge's memory while 100,000 jobs wait, and compare them to an empty edge."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

from bench.figures import Figure, p50
from bench.http_load import get_request, post_request, run_load
from bench.installation import create_jobs, make_job, run_installation
from bench.submit import BODY
from schemas.job import Job, Status

JOBS = 100_000
SAMPLES = 300


def _job(number: int) -> Job:
    return make_job(number, status=Status.QUEUED, input={"text": "hello"}, queued_at=datetime.now(UTC))


async def rows() -> AsyncIterator[Figure]:
    """Yield the medians over one connection, and the edge's peak memory."""
    async with run_installation() as made:
        submit, page = post_request("/v1/jobs", made.key, BODY), get_request("/v1/jobs?limit=50", made.key)
        await run_load(made.port, [submit] * 100, 4)
        empty = p50((await run_load(made.port, [submit] * SAMPLES, 1)).latencies)
        listed = p50((await run_load(made.port, [page] * SAMPLES, 1, b" 200 ")).latencies)
        await create_jobs(made, map(_job, range(JOBS)))
        full = p50((await run_load(made.port, [submit] * SAMPLES, 1)).latencies)
        note = f"{empty * 1e3:.2f} ms empty, {full * 1e3:.2f} ms with {JOBS} waiting"
        yield Figure("waiting", "submit p50 against the empty edge", full / empty, "x", 1.3, note=note)
        paged = p50((await run_load(made.port, [page] * SAMPLES, 1, b" 200 ")).latencies)
        yield Figure("waiting", "list page of 50", paged * 1e3, "ms", note=f"{listed * 1e3:.2f} ms empty")
        yield Figure("waiting", "edge peak RSS", made.installation.edge.peak_rss_mb(), "MB", 200)
