"""submit → 202 with every write synced, at 1, 16 and 64 connections, beside a bare JetStream publish with ack."""

from collections.abc import AsyncIterator

from bench.load import Load, load, post, timed
from bench.rows import Row, p50, p99
from bench.scene import Scene, scene
from schemas.job import Pointer
from schemas.words import Priority

BODY = b'{"endpoint":"echo","input":{"text":"hello"}}'
COUNTS = {1: 1000, 16: 4000, 64: 4000}
AIM_AT_16 = 1200.0


async def _bare(scene_: Scene, count: int, tasks_at_once: int) -> Load:
    """Publish pointers alone, each awaited to its ack."""
    async with scene_.installation.bus() as bus:

        async def publish(number: int) -> None:
            await bus.queue.publish(Pointer("echo", Priority.LOW, "bench", f"bare-{tasks_at_once}-{number}", 1))

        return await timed(publish, count, tasks_at_once)


async def rows() -> AsyncIterator[Row]:
    """Rates and latencies, and each rate as a share of the bare publish measured right after it."""
    async with scene() as made:
        request = post("/v1/jobs", made.key, BODY)
        await load(made.port, [request] * 200, 8)
        for connections, count in COUNTS.items():
            ours = await load(made.port, [request] * count, connections)
            bare = await _bare(made, count, connections)
            aim = AIM_AT_16 if connections == 16 else None
            note = f"p50 {p50(ours.latencies) * 1e3:.2f} ms, p99 {p99(ours.latencies) * 1e3:.2f} ms"
            yield Row("submit", f"202s at {connections} connections", ours.per_s, "/s", aim, least=True, note=note)
            note = f"bare publish+ack {bare.per_s:.0f}/s, p50 {p50(bare.latencies) * 1e3:.2f} ms"
            yield Row("submit", f"share of bare publish at {connections}", ours.per_s / bare.per_s, "x", note=note)
