"""Snapshots on a real broker: what comes back is what was there, to the revision, and nobody is kept from writing."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from nats.aio.msg import Msg

from bus.backup import KEPT, Snapshot
from bus.connection import open_edge, open_keeper
from bus.port import Bus, BusError, Unreachable
from bus.topology import STATE, STREAMS
from tests.broker import Broker, broker
from tests.bus.samples import key, recorded

DERIVED = {"JOBS", "FEED", "KV_HOSTS", "KV_LEASES"}


class Taken:
    """One stream's bytes."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []

    async def write(self, chunk: bytes) -> None:
        self.chunks.append(chunk)

    async def read(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            yield chunk


async def take(settings) -> list[tuple[Snapshot, Taken]]:
    found = []
    async with open_keeper(settings) as (_, snapshots):
        for name in KEPT:
            taken = Taken()
            found.append((await snapshots.take(name, taken.write), taken))
    return found


async def put(settings, taken) -> None:
    async with open_keeper(settings) as (_, snapshots):
        assert await snapshots.held() == {}
        for snapshot, kept in taken:
            await snapshots.put(snapshot, kept.read(), None)


def test_every_stream_is_kept_or_comes_again_by_itself():
    assert set(KEPT) | DERIVED == {stream.name for stream in STREAMS}
    assert not set(KEPT) & DERIVED
    assert KEPT.index("USAGE") < KEPT.index("KV_STATE") < KEPT.index("KV_ASSETS")


async def test_records_come_back_with_their_history_and_their_revisions(server: Broker, edge: Bus, tmp_path: Path):
    for number in range(300):
        name = key(f"job-{number}")
        revision = await edge.records.create(name, recorded(name.id, text="x" * 2000))
        if number % 2:
            await edge.records.update(name, recorded(name.id), revision)
        if number % 7 == 0:
            await edge.records.delete(name, (await edge.records.read(name)).revision)
    before = {name: await edge.records.history(name) for name in await edge.records.keys()}
    taken = await take(server.settings("edge"))
    async with broker(tmp_path / "other") as other:
        await put(other.settings("edge"), taken)
        async with open_edge(other.settings("edge")) as restored:
            after = {name: await restored.records.history(name) for name in await restored.records.keys()}
            assert after == before
            last = max(entry.revision for entries in before.values() for entry in entries)
            assert await restored.records.create(key("next"), recorded("next")) > last


async def test_what_was_judged_is_not_judged_again_and_the_rest_is(server: Broker, edge: Bus, tmp_path: Path):
    for number in range(5):
        await edge.records.create(key(f"job-{number}"), recorded(f"job-{number}"))
    for _ in range(3):
        await (await edge.outbox.judge()).done()
    taken = await take(server.settings("edge"))
    for _ in "twice":
        async with broker(tmp_path / "other") as other:
            await put(other.settings("edge"), taken)
            taken = await take(other.settings("edge"))
            async with open_edge(other.settings("edge")) as restored:
                judged = [(await restored.outbox.judge()).value.recorded.job.key for _ in range(2)]
                assert judged == [key("job-3"), key("job-4")]
        shutil.rmtree(tmp_path / "other")


async def test_a_restored_feed_is_another_epoch_and_has_the_states(server: Broker, edge: Bus, tmp_path: Path):
    await edge.records.create(key(), recorded())
    position = await edge.feed.position()
    taken = await take(server.settings("edge"))
    async with broker(tmp_path / "other") as other:
        await put(other.settings("edge"), taken)
        async with open_edge(other.settings("edge")) as restored:
            with anyio.fail_after(20):
                async for item in restored.feed.follow(key().owner, key().id, after=position):
                    assert item.id.split("-")[0] != position.split("-")[0]
                    assert item.change is not None
                    break


async def test_nobody_is_kept_from_writing_while_it_is_taken(server: Broker, edge: Bus, tmp_path: Path):
    for number in range(50):
        await edge.records.create(key(f"before-{number}"), recorded(f"before-{number}"))
    written = 0
    done = anyio.Event()

    async def write() -> None:
        nonlocal written
        while not done.is_set():
            await edge.records.create(key(f"while-{written}"), recorded(f"while-{written}"))
            written += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        taken = await take(server.settings("edge"))
        done.set()
    assert written
    async with broker(tmp_path / "other") as other:
        await put(other.settings("edge"), taken)
        async with open_edge(other.settings("edge")) as restored:
            there = await restored.records.keys()
    assert {key(f"before-{number}") for number in range(50)} <= there
    assert there <= {key(f"before-{number}") for number in range(50)} | {key(f"while-{n}") for n in range(written)}


async def test_a_stream_that_is_there_is_not_written_over(server: Broker, edge: Bus):
    await edge.records.create(key(), recorded())
    async with open_keeper(server.settings("edge")) as (bus, snapshots):
        taken = Taken()
        snapshot = await snapshots.take(STATE.name, taken.write)
        with pytest.raises(BusError, match="already"):
            await snapshots.put(snapshot, taken.read(), None)
        assert await bus.records.read(key()) is not None


@pytest.mark.parametrize("missed", [0, 1, 3])
async def test_a_piece_that_nobody_heard_is_sent_again(
    server: Broker, edge: Bus, tmp_path: Path, monkeypatch, missed: int
):
    """Of a cluster a server may not have heard yet which other one takes the pieces in."""
    await edge.records.create(key(), recorded())
    taken = Taken()
    async with open_keeper(server.settings("edge")) as (_, snapshots):
        snapshot = await snapshots.take(STATE.name, taken.write)
    async with broker(tmp_path / "other") as other, open_keeper(other.settings("edge")) as (bus, snapshots):
        wire, left = snapshots._js.wire, [Msg(None, headers={"Status": "503"})] * missed
        ask = wire.request

        async def request(subject: str, *words, **more) -> Msg:
            return (
                left.pop()
                if left and "RESTORE" in subject and "API" not in subject
                else await ask(subject, *words, **more)
            )

        monkeypatch.setattr(wire, "request", request)
        await snapshots.put(snapshot, taken.read(), None)
        assert (await bus.records.read(key()), left) == (await edge.records.read(key()), [])


async def test_a_stream_is_asked_for_again_and_a_late_answer_does_not_mix_with_it(
    server: Broker, edge: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The broker took the first request and sends, but its answer comes too late."""
    await edge.records.create(key(), recorded(text="x" * 2000))
    taken, subjects = Taken(), []
    async with open_keeper(server.settings("edge")) as (_, snapshots):
        wire = snapshots._js.wire
        ask = wire.request

        async def request(subject: str, *words, **more) -> Msg:
            answer = await ask(subject, *words, **more)
            if "STREAM.SNAPSHOT" in subject:
                subjects.append(subject)
                if len(subjects) == 1:
                    raise Unreachable("not answered")
            return answer

        monkeypatch.setattr(wire, "request", request)
        snapshot = await snapshots.take(STATE.name, taken.write)
    assert len(subjects) == 2
    async with broker(tmp_path / "other") as other:
        await put(other.settings("edge"), [(snapshot, taken)])
        async with open_edge(other.settings("edge")) as restored:
            assert await restored.records.read(key()) == await edge.records.read(key())


async def test_what_is_no_snapshot_makes_no_stream(server: Broker, edge: Bus, tmp_path: Path):
    taken = Taken()
    async with open_keeper(server.settings("edge")) as (_, snapshots):
        snapshot = await snapshots.take(STATE.name, taken.write)
    taken.chunks = [b"rubbish" * 1000]
    async with broker(tmp_path / "other") as other, open_keeper(other.settings("edge")) as (_, snapshots):
        with pytest.raises(BusError):
            await snapshots.put(snapshot, taken.read(), None)
        assert "KV_STATE" not in await snapshots.held()


async def test_an_edge_at_work_is_seen_and_everything_can_be_cleared(server: Broker, edge: Bus):
    await edge.records.create(key(), recorded())
    async with open_keeper(server.settings("edge")) as (_, snapshots):
        assert not await snapshots.at_work()
        changes = edge.records.changes()
        await anext(changes)
        assert await snapshots.at_work()
        await changes.aclose()
        await snapshots.clear()
        assert await snapshots.held() == {}
