"""The HeyGem facade while the broker is away, and while the edge is killed as a code is used again."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from bus.interface import VersionedRecord
from edge.facades.heygem.routes import HOLD_TIMEOUT_S
from schemas import events as e
from schemas.job import JobKey, Status
from schemas.lifecycle import next_record
from tests.chaos.fault_points import FOLDER_ENV, CallSide, FaultPoints
from tests.e2e.test_facades import FacadeInstallation, facade_settings, free_port
from tests.support.installation import Installation, run_installation, wait_until_ready
from tests.support.wait import wait_for

KEY = JobKey("easy", "code-1")
ACCEPTED, BUSY = 10000, 10001
AT = "records.update.submitted"


@asynccontextmanager
async def run_facade_edge(folder: Path) -> AsyncIterator[tuple[FacadeInstallation, FaultPoints, dict[str, str]]]:
    """Run an edge that stops at fault points; yield it, its fault points and its environment. No runner is started."""
    root = folder / "shared"
    (root / "temp").mkdir(parents=True)
    (root / "temp" / "speech.wav").write_bytes(b"speech")
    (root / "temp" / "face.mp4").write_bytes(b"face ")
    faults = FaultPoints(folder / "faults")
    keyless = free_port()
    environ = facade_settings(root, keyless) | {FOLDER_ENV: str(folder / "faults")}
    installation = Installation(folder, "process", None, {"edge": "tests.chaos.entry_edge"})
    async with (
        run_installation(installation, **environ) as running,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{keyless}", timeout=30) as local,
    ):
        yield FacadeInstallation(running, root, local), faults, environ


async def expire(facade: FacadeInstallation) -> VersionedRecord:
    """Expire the job, as when no host came in time."""
    entry = await facade.running.bus.job_store.read(KEY)
    assert entry is not None
    recorded = next_record(entry.record.job, e.Expired("start_timeout"), entry.record.at)
    return VersionedRecord(await facade.running.bus.job_store.update(KEY, recorded, entry.revision), recorded)


async def test_while_the_broker_is_away_a_query_is_busy_and_a_submit_waits_for_it(tmp_path: Path):
    async with run_facade_edge(tmp_path) as (facade, _, _):
        server = facade.running.installation.server
        assert (await facade.easy(code="code-1"))["code"] == ACCEPTED
        await server.stop()
        answers: dict[str, Any] = {}

        async def submit(code: str) -> None:
            answers[code] = (await facade.easy(code=code))["code"]

        async def query() -> dict[str, Any]:
            return dict((await facade.local.get("/easy/query", params={"code": "code-1"})).json())

        async def is_connected() -> bool:
            return facade.running.bus.health.is_connected

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(submit, "code-1")
            tasks.start_soon(submit, "code-2")
            for _ in range(20):
                assert await query() == {"code": BUSY, "data": {}, "msg": "忙碌中", "success": True}
            assert not answers
            await server.start()
        assert answers == {"code-1": ACCEPTED, "code-2": ACCEPTED}
        assert (await query())["data"]["status"] == 1
        await wait_for(is_connected)  # the edge was first
        assert await facade.running.bus.job_store.keys() == {KEY, JobKey(KEY.owner, "code-2")}
        await server.kill()
        with anyio.fail_after(HOLD_TIMEOUT_S + 20):
            assert (await facade.easy(code="code-3"))["code"] == BUSY
        await server.start()

        async def known() -> bool:
            return bool((await query())["code"] == 10000)

        await wait_for(known, timeout_s=30)
        assert (await facade.easy(code="code-3"))["code"] == ACCEPTED


@pytest.mark.parametrize("moment", list(CallSide))
async def test_an_edge_that_is_killed_while_it_begins_a_code_again_leaves_the_old_round_or_the_new(
    tmp_path: Path, moment: CallSide
):
    async with run_facade_edge(tmp_path) as (facade, faults, environ):
        installation = facade.running.installation
        assert (await facade.easy(code="code-1"))["code"] == ACCEPTED
        ended = await expire(facade)
        faults.arm(AT, moment)

        async def submit() -> None:
            with pytest.raises(httpx2.HTTPError):
                await facade.easy(code="code-1", audio_url="face.mp4")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(submit)

            async def stands() -> bool:
                return faults.reached(AT, moment, installation.edge.pid)

            await wait_for(stands, timeout_s=30)
            await installation.edge.kill()
        left = await facade.running.bus.job_store.read(KEY)
        assert left is not None
        if moment is CallSide.BEFORE:
            assert left == ended
        else:
            assert (left.record.job.round, left.record.job.status) == (2, Status.QUEUED)
        await installation.start_edge(**environ)
        await wait_until_ready(facade.running.ann, 30)
        assert (await facade.easy(code="code-1", audio_url="face.mp4"))["code"] == ACCEPTED
        history = await facade.running.bus.job_store.history(KEY)
        assert [type(entry.record.event) for entry in history] == [e.Submitted, e.Expired, e.Submitted]
        await installation.start_runner()
        assert (await facade.done("code-1"))["status"] == 2
        assert (facade.root / "temp" / "code-1-r.mp4").read_bytes() == b"face face "
