"""Measure submit → 202 with every write synced, at 1, 16 and 64 connections, and a bare JetStream publish with ack.

Then measure it at 64 connections while 20,000 jobs wait for a file that never arrives. The edge checks them one by one.
"""

from collections.abc import AsyncIterator

from bench.figures import Figure, p50, p99
from bench.http_load import LoadResult, post_request, run_load, run_timed
from bench.installation import BenchInstallation, create_jobs, make_job, run_installation
from schemas.job import Job, Pointer, Priority, Status

BODY = b'{"endpoint":"echo","input":{"text":"hello"}}'
COUNTS = {1: 1000, 16: 4000, 64: 4000}
AIM_AT_16 = 1200.0
SCHEDULED = 20_000
AT_ONCE = 64
AIM_P99_TO_P50 = 4.0


async def _publish_only(scene_: BenchInstallation, count: int, tasks_at_once: int) -> LoadResult:
    """Publish only pointers, and wait for the ack of each."""
    async with scene_.installation.bus() as bus:

        async def publish(number: int) -> None:
            await bus.job_queue.publish(Pointer("echo", Priority.LOW, "bench", f"bare-{tasks_at_once}-{number}", 1))

        return await run_timed(publish, count, tasks_at_once)


def _scheduled(number: int) -> Job:
    """Return a job that lacks a file, as a submit with `await_input` records it."""
    given = {"file": f"sha256:{number:064x}"}
    return make_job(number, status=Status.SCHEDULED, input=given, missing=(f"{number:064x}",))


async def _load_with_scheduled_jobs() -> AsyncIterator[Figure]:
    """Start the load as soon as the edge counts the waiting jobs, so that it is still checking them for their file."""
    async with run_installation() as made:
        request = post_request("/v1/jobs", made.key, BODY)
        await run_load(made.port, [request] * 200, 8)
        await create_jobs(made, map(_scheduled, range(SCHEDULED)))
        ours = await run_load(made.port, [request] * COUNTS[AT_ONCE], AT_ONCE)
    half, most = p50(ours.latencies), p99(ours.latencies)
    what = f"p99 against p50 at {AT_ONCE} connections, {SCHEDULED} scheduled"
    note = f"p50 {half * 1e3:.1f} ms, p99 {most * 1e3:.1f} ms; {ours.per_s:.0f} /s"
    yield Figure("submit", what, most / half, "x", AIM_P99_TO_P50, note=note)


async def rows() -> AsyncIterator[Figure]:
    """Yield rates and latencies, and each rate as a share of the bare publish that is measured right after it."""
    async with run_installation() as made:
        request = post_request("/v1/jobs", made.key, BODY)
        await run_load(made.port, [request] * 200, 8)
        for connections, count in COUNTS.items():
            ours = await run_load(made.port, [request] * count, connections)
            bare = await _publish_only(made, count, connections)
            aim = AIM_AT_16 if connections == 16 else None
            note = f"p50 {p50(ours.latencies) * 1e3:.2f} ms, p99 {p99(ours.latencies) * 1e3:.2f} ms"
            yield Figure("submit", f"202s at {connections} connections", ours.per_s, "/s", aim, least=True, note=note)
            note = f"bare publish+ack {bare.per_s:.0f}/s, p50 {p50(bare.latencies) * 1e3:.2f} ms"
            yield Figure("submit", f"share of bare publish at {connections}", ours.per_s / bare.per_s, "x", note=note)
    async for row in _load_with_scheduled_jobs():
        yield row
