"""Runners as processes of their own over a real broker and real HTTP, for tests that kill them."""

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

from bus.connection import open_edge
from bus.port import Bus
from edge.store.directory import open_directory
from schemas.events import CancelRequested, Recorded, Submitted
from schemas.feed import Note, ProgressNote
from schemas.job import Job, JobKey, Policy
from schemas.lifecycle import step
from schemas.words import FINAL, Status
from tests import job_user
from tests.broker import Broker, broker, until
from tests.edge.store.served import served
from tests.runner.asset_server import KEY, AssetServer

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"HEARTBEAT_S": "1", "PRESENCE_S": "1", "IDLE_S": "0.2", "RETRY_MOST_S": "0.5"}


class Installation:
    """Broker, asset server, and runners that come and go."""

    def __init__(self, folder: Path, server: Broker, bus: Bus, edge: AssetServer, url: str) -> None:
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
            **job_user.settings(),
            **{f"LAMPLIGHTER_PACE__{name}": value for name, value in QUICK.items()},
        }

    @asynccontextmanager
    async def runner(self) -> AsyncIterator[anyio.abc.Process]:
        """One life; killed at the end if it lives still."""
        with (self.folder / "runner.log").open("ab") as log:
            argv = [sys.executable, "-m", "tests.runner.alone"]
            process = await anyio.open_process(argv, cwd=ROOT, env=self.environ, stdout=log, stderr=log)
            try:
                yield process
            finally:
                if process.returncode is None:
                    process.kill()
                with anyio.CancelScope(shield=True):
                    await process.wait()

    async def submit(self, **given: Any) -> JobKey:
        now = datetime.now(UTC)
        job = Job(
            id="j1",
            owner="ada",
            endpoint="echo",
            pool="echo",
            status=Status.QUEUED,
            digest="d",
            input=given,
            policy=Policy(max_attempts=1),
            created_at=now,
            queued_at=now,
        )
        await self.bus.queue.ensure(["echo"])
        await self.bus.records.create(job.key, Recorded(now, Submitted(), job))
        await self.bus.queue.publish(job.pointer)
        return job.key

    async def cancel(self, key: JobKey) -> None:
        """As the edge does it."""
        entry = await self.bus.records.read(key)
        assert entry is not None
        wish = step(entry.recorded.job, CancelRequested(), datetime.now(UTC))
        await self.bus.records.update(key, wish, entry.revision)
        await self.bus.control.nudge("gpu-1", key)

    async def job(self, key: JobKey) -> Job:
        entry = await self.bus.records.read(key)
        assert entry is not None
        return entry.recorded.job

    async def notes(self, key: JobKey, kind: type[Note]) -> list[Any]:
        return [note for note in await self.bus.feed.notes(key) if isinstance(note, kind)]

    async def ended(self, key: JobKey) -> Job:
        async def final() -> bool:
            return (await self.job(key)).status in FINAL

        try:
            await until(final, within_s=60)
        except TimeoutError:
            pytest.fail((self.folder / "runner.log").read_text()[-6000:])
        return await self.job(key)

    async def steps(self, key: JobKey, count: int) -> None:
        """Wait until followers have seen this many progress notes."""

        async def seen() -> bool:
            return len(await self.notes(key, ProgressNote)) >= count

        try:
            await until(seen, within_s=60)
        except TimeoutError:
            pytest.fail((self.folder / "runner.log").read_text()[-6000:])


@pytest.fixture
async def place(tmp_path: Path, anyio_backend: object) -> AsyncIterator[Installation]:
    async with (
        broker(tmp_path, hosts=("gpu-1",)) as server,
        open_edge(server.settings("edge")) as bus,
        open_directory(tmp_path / "store") as store,
    ):
        edge = AssetServer(store)
        async with served(edge.app()) as url:
            yield Installation(tmp_path, server, bus, edge, url)
