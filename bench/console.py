"""Measure the console in Chromium: until the list of 10,000 jobs can be used, and while 200 jobs report progress."""

import time
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from itertools import count
from typing import NamedTuple

import anyio
from playwright.async_api import CDPSession, Page

from bench.figures import Figure
from bench.installation import BenchInstallation, create_jobs, make_job, run_installation
from bus.interface import Bus
from edge.core.clock import utc_now
from schemas.events import FeedPosition, ProgressMessage
from schemas.job import Claim, JobKey, Status
from tests.support.browser import WatchedPage, open_browser, open_page

OWNER = "ann"
JOBS = 10_000
RUNNING = 200
EVERY_S = 0.25  # the rate at which a runner publishes progress
WATCHED_S = 10.0


class ProgressPublisher:
    """Publishes the progress of each job every EVERY_S, as runners would. `published`: the number of messages."""

    def __init__(self, bus: Bus, keys: Sequence[JobKey]) -> None:
        self._bus, self._keys = bus, keys
        self.published = 0

    async def run(self) -> None:
        for step in count(1):
            began = anyio.current_time()
            async with anyio.create_task_group() as tasks:
                for key in self._keys:
                    place = FeedPosition(1, 1, step)
                    message = ProgressMessage(place, utc_now(), step % 1000 / 1000, "render", step, 1000)
                    tasks.start_soon(self._bus.feed.publish, key, message)
            self.published += len(self._keys)
            await anyio.sleep_until(began + EVERY_S)


class WatchedLoad(NamedTuple):
    """Shares of a core over WATCHED_S: of the edge, and of the main thread of the page; messages a second."""

    edge: float
    page: float
    rate: float


async def _main_thread_s(session: CDPSession | None) -> float:
    """Return the time for which the page's main thread has worked (CDP, Performance.getMetrics)."""
    if session is None:
        return 0.0
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


async def _measure_load(made: BenchInstallation, publisher: ProgressPublisher, page: Page | None) -> WatchedLoad:
    """Measure for WATCHED_S. Raises SystemExit if the page shows no progress in that time."""
    session = None if page is None else await page.context.new_cdp_session(page)
    if session is not None:
        await session.send("Performance.enable")
    shown = None if page is None else await page.inner_text(".rows")
    cpu, worked, published, began = (
        made.edge_cpu_s(),
        await _main_thread_s(session),
        publisher.published,
        time.perf_counter(),
    )
    await anyio.sleep(WATCHED_S)
    took = time.perf_counter() - began
    load = WatchedLoad(
        (made.edge_cpu_s() - cpu) / took,
        (await _main_thread_s(session) - worked) / took,
        (publisher.published - published) / took,
    )
    if page is not None and await page.inner_text(".rows") == shown:
        raise SystemExit("bench: the open console shows no progress: read the edge's log")
    return load


async def rows() -> AsyncIterator[Figure]:
    """Yield the time to the first use, and the load of edge and page while jobs report progress."""
    async with run_installation() as made, open_browser() as browser:
        far = utc_now() + timedelta(days=365)  # else the edge would queue them
        waiting = [
            make_job(number, owner=OWNER, status=Status.SCHEDULED, input={}, not_before=far) for number in range(JOBS)
        ]
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
            publisher = ProgressPublisher(bus, [job.key for job in running])
            tasks.start_soon(publisher.run)
            await anyio.sleep(2)  # the first messages open what they need
            async with open_page(browser) as watched:
                await _sign_in(made, watched)
                await watched.page.goto(f"{made.installation.url}/#/jobs?status=running")
                await watched.page.wait_for_selector(".rows .row a")
                opened = await _measure_load(made, publisher, watched.page)
            alone = await _measure_load(made, publisher, None)  # last: the edge has digested the new jobs by then
            what, note = f"{RUNNING} jobs with progress {1 / EVERY_S:g}/s", f"{opened.rate:.0f} messages a second"
            edge = 100 * (opened.edge - alone.edge)
            yield Figure("console", f"edge for one open console, {what}", edge, "% of a core", aim=10.0, note=note)
            page = 100 * opened.page
            yield Figure("console", f"main thread of the page, {what}", page, "% of a core", aim=25.0, note=note)
            tasks.cancel_scope.cancel()
