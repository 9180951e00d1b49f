"""Transient errors are reported as "busy", and a submit waits for their end.

Clients give up a job at every other error, although the job continues.
"""

import os
from contextlib import asynccontextmanager
from sqlite3 import OperationalError

import anyio
import httpx2
import pytest

from bus.health import BrokerStatus
from bus.interface import RevisionConflict
from edge.facades.heygem import facade, routes
from edge.owners.quotas import OwnerQuotaOverride
from schemas.job import JobKey
from tests.edge.facades.heygem.conftest import OWNER, HeygemClient
from tests.edge.facades.heygem.test_desktop import ACCEPTED

BUSY = {"code": 10001, "data": {}, "msg": "忙碌中", "success": True}


@pytest.fixture
def brief(monkeypatch):
    """Shorten the hold to two attempts."""
    monkeypatch.setattr(routes, "HOLD_TIMEOUT_S", 0.2)
    monkeypatch.setattr(routes, "HOLD_RETRY_INTERVAL_S", 0.1)


@asynccontextmanager
async def submitting(heygem: HeygemClient, answers: list):
    """Send a submit during the block, and enter the block after its first failed attempt."""
    held = anyio.Event()
    disconnected = routes.wait_for_disconnect

    async def noted(*args) -> bool:
        held.set()
        return await disconnected(*args)

    async def submit() -> None:
        answers.append(await heygem.submit())

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(routes, "wait_for_disconnect", noted)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(submit)
            await held.wait()
            yield


async def test_a_submit_is_held_until_the_broker_is_back(heygem: HeygemClient):
    answers: list = []
    heygem.world.bus.cut()
    async with submitting(heygem, answers):
        assert await heygem.query() == BUSY
        heygem.world.bus.heal()
    assert answers == [ACCEPTED]
    assert (await heygem.query())["data"]["status"] == 1


async def test_a_submit_with_a_key_is_held_too(heygem: HeygemClient):
    heygem.local.headers["X-API-Key"] = heygem.key
    for body in ("speech.wav", "face.mp4"):
        await heygem.world.put("ann", (heygem.root / "temp" / body).read_bytes())
    answers: list = []
    heygem.world.bus.cut()
    async with submitting(heygem, answers):
        assert await heygem.query() == BUSY
        heygem.world.bus.heal()
    assert answers == [ACCEPTED]
    assert (await heygem.job(owner="ann")).round == 1


async def test_a_submit_is_busy_when_the_broker_stays_away(heygem: HeygemClient, brief):
    heygem.world.bus.cut()
    reply = await heygem.local.post(
        "/easy/submit", json={"audio_url": "speech.wav", "video_url": "face.mp4", "code": "a"}
    )
    assert (reply.json(), reply.headers["Lamplighter-Error"][:12]) == (BUSY, "unavailable:")
    heygem.world.bus.heal()
    assert await heygem.world.bus.job_store.keys() == set()


async def test_a_submit_is_dropped_when_its_client_disconnects(heygem: HeygemClient, monkeypatch):
    noticed = anyio.Event()
    disconnected = routes.wait_for_disconnect

    async def noted(*args) -> bool:
        if gone := await disconnected(*args):
            noticed.set()
        return gone

    monkeypatch.setattr(routes, "wait_for_disconnect", noted)
    heygem.world.bus.cut()
    with pytest.raises(httpx2.ReadTimeout):
        await heygem.local.post(
            "/easy/submit", json={"audio_url": "speech.wav", "video_url": "face.mp4", "code": "a"}, timeout=0.3
        )
    with anyio.fail_after(routes.HOLD_TIMEOUT_S):
        await noticed.wait()
    heygem.world.bus.heal()
    assert await heygem.world.bus.job_store.read(JobKey(OWNER, "a")) is None


async def test_an_answer_that_was_lost_makes_no_second_job(heygem: HeygemClient, monkeypatch):
    """The record is written, and the connection breaks before the broker's acknowledgement arrives."""
    create = heygem.world.bus.job_store.create

    async def unheard(*args):
        await create(*args)
        heygem.world.bus.cut()
        await heygem.world.bus.health.require_connected()

    monkeypatch.setattr(heygem.world.bus.job_store, "create", unheard)
    answers: list = []
    async with submitting(heygem, answers):
        heygem.world.bus.heal()
    assert answers == [ACCEPTED]
    history = await heygem.world.bus.job_store.history((await heygem.job()).key)
    assert len(history) == 1


async def unsynced(heygem: HeygemClient, patch: pytest.MonkeyPatch) -> None:
    async def health() -> BrokerStatus:
        return BrokerStatus(0.0, is_durable=False, version="")

    patch.setattr(heygem.world.bus.health, "status", health)


async def catching_up(heygem: HeygemClient, patch: pytest.MonkeyPatch) -> None:
    heygem.world.limits[OWNER] = OwnerQuotaOverride(waiting=5)
    patch.setattr(heygem.world.index, "_caught_up", anyio.Event())


async def contended(heygem: HeygemClient, patch: pytest.MonkeyPatch) -> None:
    async def changed(*_):
        raise RevisionConflict("others were faster")

    patch.setattr(heygem.world.bus.job_store, "read", changed)


async def full_disk(_: HeygemClient, patch: pytest.MonkeyPatch) -> None:
    def full(*_):
        raise OSError(28, os.strerror(28))

    patch.setattr(facade, "_write_note", full)


@pytest.mark.parametrize("fault", [unsynced, catching_up, contended, full_disk])
async def test_what_passes_by_itself_is_busy_and_then_over(heygem: HeygemClient, brief, fault):
    with pytest.MonkeyPatch.context() as patch:
        await fault(heygem, patch)
        assert await heygem.submit() == BUSY
    heygem.world.time.advance(seconds=3)  # for so long the edge believes what the broker said of itself
    assert await heygem.submit() == ACCEPTED


async def test_a_query_is_busy_while_the_index_cannot_answer(heygem: HeygemClient, monkeypatch):
    await heygem.submit()

    def broken(*_):
        raise OperationalError("disk I/O error")

    async def asks(job) -> bool:
        return await heygem.world.index._query_when_ready(broken)

    await heygem.finish()
    monkeypatch.setattr(heygem.placing, "is_missing", asks)
    assert await heygem.query() == BUSY
