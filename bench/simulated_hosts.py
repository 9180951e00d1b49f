"""Many hosts in one process: `python -m bench.simulated_hosts COUNT JOB_S`. Prints a line for each job that starts.

Each host is a whole runner, with its own connection to the broker: claim loop, heartbeats, records, feed. Only the
containers are simulated: a job sleeps for JOB_S seconds on average and writes an empty output. BENCH_BROKER_URL and
BENCH_BROKER_PASSWORD say where the broker is. A line has the host, the job, and when it started and ended the one
before, in seconds of the monotonic clock.
"""

import logging
import os
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path

import anyio
import structlog
import uvloop

from bus.open import open_runner
from bus.settings import BrokerSettings
from runner.context import HostContext, OutageGate, RunnerContext, boot_clock
from runner.endpoints import load_endpoints
from runner.gpu.allocator import GpuAllocator, GpuSettings
from runner.gpu.port import NoGpuMonitor
from runner.lifecycle import run_lifecycle
from runner.settings import RunnerIntervals, WarmSettings
from runner.slots import Slots
from schemas.asset import Digest
from tests.support.fake_engine import FakeContainer, FakeEngine
from tests.support.installation import IMAGES
from tests.support.runner_environment import FakeAssetTransfer, write_outputs

IMAGE = "lamplighter-echo"
JOB_SPREAD = (0.5, 1.5)  # jobs of one length would all end at the same moment, as they began


def _now() -> datetime:
    return datetime.now(UTC)


async def _drop(_: Collection[Digest]) -> None:
    """Drop nothing: there is no cache."""


async def run_host(host: str, folder: Path, job_s: float, report: Callable[[str], None]) -> None:
    """Run the claim loop of one host until cancelled; its jobs take `job_s` and are passed to `report`."""
    ended_at = 0.0

    async def program(container: FakeContainer) -> int:
        nonlocal ended_at
        report(f"{host} {container.spec.identity.job} {time.monotonic()} {ended_at}")
        await anyio.sleep(job_s * random.uniform(*JOB_SPREAD))
        write_outputs(container)
        ended_at = time.monotonic()
        return 0

    broker = BrokerSettings(os.environ["BENCH_BROKER_URL"], "runner", os.environ["BENCH_BROKER_PASSWORD"])
    jobs_dir = folder / host
    jobs_dir.mkdir()
    async with open_runner(broker) as bus, FakeEngine({IMAGE: program}, _now) as engine:
        context = RunnerContext(
            installation="bench",
            host=host,
            incarnation=secrets.token_hex(8),
            jobs_dir=jobs_dir,
            bus=bus,
            engine=engine,
            assets=FakeAssetTransfer(),
            now=_now,
            uptime=boot_clock(),
            jitter=random.random,
            intervals=RunnerIntervals(),
            outage=OutageGate(),
            log=structlog.get_logger("runner"),
        )
        settings = HostContext(
            endpoints=dict(load_endpoints([IMAGES / "echo"])),
            gpu_allocator=GpuAllocator(NoGpuMonitor(), GpuSettings(), time.monotonic),
            slots=Slots(1),
            drop_assets=_drop,
            warm=WarmSettings(on=False),
            pulled_images_file=folder / f"{host}.images",
        )
        await run_lifecycle(context, settings, anyio.Event(), lambda: None)


async def main(count: int, job_s: float) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with tempfile.TemporaryDirectory() as folder:
        async with anyio.create_task_group() as tasks:
            for number in range(count):
                tasks.start_soon(run_host, f"host-{number}", Path(folder), job_s, _print)


def _print(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
