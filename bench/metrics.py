"""Measure what the metrics add to a submit: the work of their middleware and counters, against that of the edge.

A submit takes milliseconds, most of them waiting for the broker, and varies by more than the metrics cost. So the work
that they add is run alone, many times, and compared with the processor time of a whole submit.
"""

import time
from collections.abc import AsyncIterator

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bench.figures import Figure
from bench.http_load import post_request, run_load
from bench.installation import run_installation
from bench.submit import BODY
from edge.core.metrics import EdgeMetrics, MetricsSettings
from edge.http.middleware import RequestMetrics

SUBMITS = 2000
CALLS = 50_000
RUNS = 5
AIM_PERCENT = 3.0  # of metrics, logs and traces together
SCRAPES = 50


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    del scope, receive
    await send({"type": "http.response.start", "status": 202, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b""})


async def _receive() -> Message:
    return {"type": "http.request"}


async def _send(_: Message) -> None:
    return None


async def _seconds_per_call(app: ASGIApp, metrics: EdgeMetrics | None) -> float:
    """Return the least seconds of a call over several runs. With `metrics`, each call also counts a submit."""
    best = float("inf")
    for _ in range(RUNS):
        began = time.perf_counter()
        for _ in range(CALLS):
            await app({"type": "http", "method": "POST", "path_template": "/v1/jobs"}, _receive, _send)
            if metrics is not None:
                metrics.count_submit("ann", "echo")
        best = min(best, (time.perf_counter() - began) / CALLS)
    return best


async def rows() -> AsyncIterator[Figure]:
    """Yield the added work, its share of a submit, and the time of a scrape."""
    metrics = EdgeMetrics(MetricsSettings(owners=True))
    added_s = await _seconds_per_call(RequestMetrics(_answer, metrics), metrics) - await _seconds_per_call(
        _answer, None
    )
    async with run_installation() as made:
        request = post_request("/v1/jobs", made.key, BODY)
        await run_load(made.port, [request] * 200, 8)
        before_s = made.edge_cpu_s()
        await run_load(made.port, [request] * SUBMITS, 1)
        submit_s = (made.edge_cpu_s() - before_s) / SUBMITS
        scrape = f"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {made.admin}\r\n\r\n".encode()
        scraped = await run_load(made.port, [scrape] * SCRAPES, 1, b" 200 ")
    note = f"{added_s * 1e6:.1f} µs of {submit_s * 1e3:.2f} ms of processor time"
    yield Figure("metrics", "share of a submit", 100 * added_s / submit_s, "%", AIM_PERCENT, note=note)
    yield Figure("metrics", "one scrape", 1e3 * min(scraped.latencies), "ms", note=f"{SUBMITS + 200} jobs wait")
