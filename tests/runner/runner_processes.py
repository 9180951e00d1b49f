"""Runners as processes over a real broker and real HTTP, for tests that kill them."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import msgspec
import pytest

from bus.interface import Bus
from bus.open import open_edge
from edge.store.directory import open_directory
from schemas.events import CancelRequested, FeedMessage, JobRecord, ProgressMessage, Submitted
from schemas.job import FINAL_STATUSES, Job, JobKey, Policy, Status
from schemas.lifecycle import next_record
from tests.support import job_user
from tests.support.asset_server import KEY, AssetServer
from tests.support.http_server import serve_app
from tests.support.nats_broker import BrokerProcess, run_broker
from tests.support.wait import wait_for

ROOT = Path(__file__).resolve().parents[2]
FAST_PACE = {"HEARTBEAT_S": "1", "PRESENCE_S": "1", "IDLE_S": "0.2", "RETRY_MOST_S": "0.5"}


class RunnerProcesses:
    """Broker, asset server, and runner processes."""

    def __init__(self, folder: Path, server: BrokerProcess, bus: Bus, edge: AssetServer, url: str) -> None:
        self.folder = folder
        self.server = server
        self.bus = bus
        self.edge = edge
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("LAMPLIGHTER_")} | {
            "LAMPLIGHTER_HOST": "gpu-1",
            "LAMPLIGHTER_DATA": str(folder / "runner"),
            "LAMPLIGHTER_ENDPOINTS": msgspec.json.encode([str(ROOT / "images" / "echo")]).decode(),
            "LAMPLIGHTER_BROKER__URL": server.url,
            "LAMPLIGHTER_BROKER__USER": "runner",
            "LAMPLIGHTER_BROKER__PASSWORD": server.passwords["runner"],
            "LAMPLIGHTER_EDGE__URL": url,
            "LAMPLIGHTER_EDGE__KEY": KEY,
            "LAMPLIGHTER_ENGINE": "process",
            "LAMPLIGHTER_GPU__WATCH": "0",
            "LAMPLIGHTER_GRACE_S": "0.2",
            "LAMPLIGHTER_WARM__ON": "0",
            **job_user.runner_settings(),
            **{f"LAMPLIGHTER_PACE__{name}": value for name, value in FAST_PACE.items()},
        }

    @asynccontextmanager
    async def runner(self) -> AsyncIterator[anyio.abc.Process]:
        """Run one runner process; it is killed at the end if it still runs."""
        with (self.folder / "runner.log").open("ab") as log:
            argv = [sys.executable, "-m", "tests.runner.runner_main"]
            process = await anyio.open_process(argv, cwd=ROOT, env=self.environ, stdout=log, stderr=log)
            try:
                yield process
            finally:
                if process.returncode is None:
                    process.kill()
                with anyio.CancelScope(shield=True):
                    await process.wait()

    async def submit(self, job_id: str = "j1", **given: Any) -> JobKey:
        now = datetime.now(UTC)
        job = Job(
            id=job_id,
            owner="ada",
            endpoint="echo",
            pool="echo",
            status=Status.QUEUED,
            request_digest="d",
            input=given,
            policy=Policy(max_attempts=1),
            created_at=now,
            queued_at=now,
        )
        await self.bus.job_queue.ensure_consumers(["echo"])
        await self.bus.job_store.create(job.key, JobRecord(now, Submitted(), job))
        await self.bus.job_queue.publish(job.pointer)
        return job.key

    async def cancel(self, key: JobKey) -> None:
        """Cancel a job as the edge does."""
        entry = await self.bus.job_store.read(key)
        assert entry is not None
        wish = next_record(entry.record.job, CancelRequested(), datetime.now(UTC))
        await self.bus.job_store.update(key, wish, entry.revision)
        await self.bus.host_nudges.nudge("gpu-1", key)

    async def job(self, key: JobKey) -> Job:
        entry = await self.bus.job_store.read(key)
        assert entry is not None
        return entry.record.job

    async def notes(self, key: JobKey, kind: type[FeedMessage]) -> list[Any]:
        return [note for note in await self.bus.feed.messages(key) if isinstance(note, kind)]

    async def wait_until_ended(self, key: JobKey) -> Job:
        async def final() -> bool:
            return (await self.job(key)).status in FINAL_STATUSES

        try:
            await wait_for(final, timeout_s=60)
        except TimeoutError:
            pytest.fail((self.folder / "runner.log").read_text()[-6000:])
        return await self.job(key)

    async def wait_for_progress(self, key: JobKey, count: int) -> None:
        """Wait until followers have seen this many progress messages."""

        async def seen() -> bool:
            return len(await self.notes(key, ProgressMessage)) >= count

        try:
            await wait_for(seen, timeout_s=60)
        except TimeoutError:
            pytest.fail((self.folder / "runner.log").read_text()[-6000:])


@pytest.fixture
async def place(tmp_path: Path, anyio_backend: object) -> AsyncIterator[RunnerProcesses]:
    async with (
        run_broker(tmp_path, hosts=("gpu-1",)) as server,
        open_edge(server.settings("edge")) as bus,
        open_directory(tmp_path / "store") as store,
    ):
        edge = AssetServer(store)
        async with serve_app(edge.app()) as url:
            yield RunnerProcesses(tmp_path, server, bus, edge, url)
