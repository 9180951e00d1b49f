"""Measure the console in Chromium: until the list of 10,000 jobs can be used, and while 200 jobs report progress."""

import time
from collections.abc import AsyncIterator, Sequence
from itertools import count
from pathlib import Path

import anyio
from playwright.async_api import Page

from bench.figures import Figure
from bench.installation import BenchInstallation, create_jobs, make_job, run_installation
from bus.interface import Bus
from edge.core.clock import utc_now
from schemas.feed import FeedPosition, ProgressMessage
from schemas.ids import JobKey
from schemas.job import Claim
from schemas.status import Status
from tests.support.browser import WatchedPage, open_browser, open_page

OWNER = "ann"
JOBS = 10_000
RUNNING = 200
EVERY_S = 0.25  # the rate at which a runner publishes progress
WATCHED_S = 10.0
CLOCK_TICKS_PER_S = 100  # USER_HZ of Linux, proc(5)


def _edge_cpu_s(made: BenchInstallation) -> float:
    """Return the processor time of the edge: utime and stime in proc(5)."""
    fields = Path(f"/proc/{made.installation.edge.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS_PER_S


async def _publish_progress(bus: Bus, keys: Sequence[JobKey]) -> None:
    """Publish the progress of each job every EVERY_S, as runners would."""
    for step in count(1):
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for key in keys:
                message = ProgressMessage(FeedPosition(1, 1, step), utc_now(), step % 1000 / 1000, "render", step, 1000)
                tasks.start_soon(bus.feed.publish, key, message)
        await anyio.sleep_until(began + EVERY_S)


async def _main_thread_s(page: Page) -> float:
    """Return the time for which the page's main thread has worked (CDP, Performance.getMetrics)."""
    session = await page.context.new_cdp_session(page)
    await session.send("Performance.enable")
    metrics = (await session.send("Performance.getMetrics"))["metrics"]
    return float(next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration"))


async def _sign_in(made: BenchInstallation, watched: WatchedPage) -> None:
    await watched.page.goto(made.installation.url)
    await watched.page.fill("#key", made.key)
    await watched.page.click("form .primary")
    await watched.page.wait_for_selector("nav")


async def _measure_first_use(made: BenchInstallation, page: Page) -> float:
    """Return the seconds from a reload of the list until its first row can be clicked."""
    await page.goto(f"{made.installation.url}/#/jobs")
    began = time.perf_counter()
    await page.reload(wait_until="commit")
    await page.wait_for_selector(".rows .row a")
    return time.perf_counter() - began


async def _measure_watching(made: BenchInstallation, page: Page | None) -> tuple[float, float]:
    """Return the share of a core that the edge used, and that of the page's main thread, over WATCHED_S."""
    cpu, thread = _edge_cpu_s(made), 0.0 if page is None else await _main_thread_s(page)
    began = time.perf_counter()
    await anyio.sleep(WATCHED_S)
    took = time.perf_counter() - began
    worked = 0.0 if page is None else await _main_thread_s(page) - thread
    return (_edge_cpu_s(made) - cpu) / took, worked / took


async def rows() -> AsyncIterator[Figure]:
    """Yield the time to the first use, and the load of edge and page while jobs report progress."""
    async with run_installation() as made, open_browser() as browser:
        waiting = [make_job(number, owner=OWNER, status=Status.SCHEDULED, input={}) for number in range(JOBS)]
        await create_jobs(made, waiting)
        async with open_page(browser) as watched:
            await _sign_in(made, watched)
            first = [await _measure_first_use(made, watched.page) for _ in range(3)]
            yield Figure("console", f"usable with {JOBS:,} jobs", min(first), "s", aim=1.0, note="best of three")
        claim = Claim("gpu-1", "bench", 1)
        running = [
            make_job(JOBS + number, owner=OWNER, status=Status.RUNNING, input={}, attempt=1, claim=claim)
            for number in range(RUNNING)
        ]
        await create_jobs(made, running)
        async with made.installation.bus() as bus, anyio.create_task_group() as tasks:
            tasks.start_soon(_publish_progress, bus, [job.key for job in running])
            await anyio.sleep(2)
            idle, _ = await _measure_watching(made, None)
            async with open_page(browser) as watched:
                await _sign_in(made, watched)
                await watched.page.goto(f"{made.installation.url}/#/jobs?status=running")
                await watched.page.wait_for_selector(".rows .row a")
                busy, thread = await _measure_watching(made, watched.page)
            what = f"{RUNNING} jobs with progress {1 / EVERY_S:g}/s"
            yield Figure("console", f"edge for one open console, {what}", 100 * (busy - idle), "% of a core", aim=10.0)
            yield Figure("console", f"main thread of the page, {what}", 100 * thread, "% of a core", aim=25.0)
            tasks.cancel_scope.cancel()
