"""Snapshots on a real broker: what comes back is what was there, to the revision, and nobody is kept from writing."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from nats.aio.msg import Msg

from bus.interface import BrokerUnreachable, Bus, BusError
from bus.nats.snapshots import BACKUP_STREAMS, StreamSnapshot
from bus.nats.topology import STATE, STREAMS
from bus.open import open_edge, open_for_backup
from tests.support.bus_samples import make_key, make_record
from tests.support.nats_broker import BrokerProcess, run_broker

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


async def take(settings) -> list[tuple[StreamSnapshot, Taken]]:
    found = []
    async with open_for_backup(settings) as (_, snapshots):
        for name in BACKUP_STREAMS:
            taken = Taken()
            found.append((await snapshots.save(name, taken.write), taken))
    return found


async def put(settings, taken) -> None:
    async with open_for_backup(settings) as (_, snapshots):
        assert await snapshots.message_counts() == {}
        for snapshot, kept in taken:
            await snapshots.restore(snapshot, kept.read(), None)


def test_every_stream_is_kept_or_comes_again_by_itself():
    assert set(BACKUP_STREAMS) | DERIVED == {stream.name for stream in STREAMS}
    assert not set(BACKUP_STREAMS) & DERIVED
    assert BACKUP_STREAMS.index("USAGE") < BACKUP_STREAMS.index("KV_STATE") < BACKUP_STREAMS.index("KV_ASSETS")


async def test_records_come_back_with_their_history_and_their_revisions(
    server: BrokerProcess, edge: Bus, tmp_path: Path
):
    for number in range(300):
        name = make_key(f"job-{number}")
        revision = await edge.job_store.create(name, make_record(name.id, text="x" * 2000))
        if number % 2:
            await edge.job_store.update(name, make_record(name.id), revision)
        if number % 7 == 0:
            await edge.job_store.delete(name, (await edge.job_store.read(name)).revision)
    before = {name: await edge.job_store.history(name) for name in await edge.job_store.keys()}
    taken = await take(server.settings("edge"))
    async with run_broker(tmp_path / "other") as other:
        await put(other.settings("edge"), taken)
        async with open_edge(other.settings("edge")) as restored:
            after = {name: await restored.job_store.history(name) for name in await restored.job_store.keys()}
            assert after == before
            last = max(entry.revision for entries in before.values() for entry in entries)
            assert await restored.job_store.create(make_key("next"), make_record("next")) > last


async def test_what_was_judged_is_not_judged_again_and_the_rest_is(server: BrokerProcess, edge: Bus, tmp_path: Path):
    for number in range(5):
        await edge.job_store.create(make_key(f"job-{number}"), make_record(f"job-{number}"))
    for _ in range(3):
        await (await edge.webhook_outbox.next_state_change()).ack()
    taken = await take(server.settings("edge"))
    for _ in "twice":
        async with run_broker(tmp_path / "other") as other:
            await put(other.settings("edge"), taken)
            taken = await take(other.settings("edge"))
            async with open_edge(other.settings("edge")) as restored:
                judged = [(await restored.webhook_outbox.next_state_change()).value.record.job.key for _ in range(2)]
                assert judged == [make_key("job-3"), make_key("job-4")]
        shutil.rmtree(tmp_path / "other")


async def test_a_restored_feed_is_another_epoch_and_has_the_states(server: BrokerProcess, edge: Bus, tmp_path: Path):
    await edge.job_store.create(make_key(), make_record())
    position = await edge.feed.last_id()
    taken = await take(server.settings("edge"))
    async with run_broker(tmp_path / "other") as other:
        await put(other.settings("edge"), taken)
        async with open_edge(other.settings("edge")) as restored:
            with anyio.fail_after(20):
                async for item in restored.feed.follow(make_key().owner, make_key().id, after=position):
                    assert item.id.split("-")[0] != position.split("-")[0]
                    assert item.change is not None
                    break


async def test_nobody_is_kept_from_writing_while_it_is_taken(server: BrokerProcess, edge: Bus, tmp_path: Path):
    for number in range(50):
        await edge.job_store.create(make_key(f"before-{number}"), make_record(f"before-{number}"))
    written = 0
    done = anyio.Event()

    async def write() -> None:
        nonlocal written
        while not done.is_set():
            await edge.job_store.create(make_key(f"while-{written}"), make_record(f"while-{written}"))
            written += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        taken = await take(server.settings("edge"))
        done.set()
    assert written
    async with run_broker(tmp_path / "other") as other:
        await put(other.settings("edge"), taken)
        async with open_edge(other.settings("edge")) as restored:
            there = await restored.job_store.keys()
    assert {make_key(f"before-{number}") for number in range(50)} <= there
    assert there <= {make_key(f"before-{number}") for number in range(50)} | {
        make_key(f"while-{n}") for n in range(written)
    }


async def test_a_stream_that_is_there_is_not_written_over(server: BrokerProcess, edge: Bus):
    await edge.job_store.create(make_key(), make_record())
    async with open_for_backup(server.settings("edge")) as (bus, snapshots):
        taken = Taken()
        snapshot = await snapshots.save(STATE.name, taken.write)
        with pytest.raises(BusError, match="already"):
            await snapshots.restore(snapshot, taken.read(), None)
        assert await bus.job_store.read(make_key()) is not None


@pytest.mark.parametrize("missed", [0, 1, 3])
async def test_a_piece_that_nobody_heard_is_sent_again(
    server: BrokerProcess, edge: Bus, tmp_path: Path, monkeypatch, missed: int
):
    """Of a cluster a server may not have heard yet which other one takes the pieces in."""
    await edge.job_store.create(make_key(), make_record())
    taken = Taken()
    async with open_for_backup(server.settings("edge")) as (_, snapshots):
        snapshot = await snapshots.save(STATE.name, taken.write)
    async with run_broker(tmp_path / "other") as other, open_for_backup(other.settings("edge")) as (bus, snapshots):
        wire, left = snapshots._jetstream.connection, [Msg(None, headers={"Status": "503"})] * missed
        ask = wire.request

        async def request(subject: str, *words, **more) -> Msg:
            return (
                left.pop()
                if left and "RESTORE" in subject and "API" not in subject
                else await ask(subject, *words, **more)
            )

        monkeypatch.setattr(wire, "request", request)
        await snapshots.restore(snapshot, taken.read(), None)
        assert (await bus.job_store.read(make_key()), left) == (await edge.job_store.read(make_key()), [])


async def test_a_stream_is_asked_for_again_and_a_late_answer_does_not_mix_with_it(
    server: BrokerProcess, edge: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The broker took the first request and sends, but its answer comes too late."""
    await edge.job_store.create(make_key(), make_record(text="x" * 2000))
    taken, subjects = Taken(), []
    async with open_for_backup(server.settings("edge")) as (_, snapshots):
        wire = snapshots._jetstream.connection
        ask = wire.request

        async def request(subject: str, *words, **more) -> Msg:
            answer = await ask(subject, *words, **more)
            if "STREAM.SNAPSHOT" in subject:
                subjects.append(subject)
                if len(subjects) == 1:
                    raise BrokerUnreachable("not answered")
            return answer

        monkeypatch.setattr(wire, "request", request)
        snapshot = await snapshots.save(STATE.name, taken.write)
    assert len(subjects) == 2
    async with run_broker(tmp_path / "other") as other:
        await put(other.settings("edge"), [(snapshot, taken)])
        async with open_edge(other.settings("edge")) as restored:
            assert await restored.job_store.read(make_key()) == await edge.job_store.read(make_key())


async def test_what_is_no_snapshot_makes_no_stream(server: BrokerProcess, edge: Bus, tmp_path: Path):
    taken = Taken()
    async with open_for_backup(server.settings("edge")) as (_, snapshots):
        snapshot = await snapshots.save(STATE.name, taken.write)
    taken.chunks = [b"rubbish" * 1000]
    async with run_broker(tmp_path / "other") as other, open_for_backup(other.settings("edge")) as (_, snapshots):
        with pytest.raises(BusError):
            await snapshots.restore(snapshot, taken.read(), None)
        assert "KV_STATE" not in await snapshots.message_counts()


async def test_an_edge_at_work_is_seen_and_everything_can_be_cleared(server: BrokerProcess, edge: Bus):
    await edge.job_store.create(make_key(), make_record())
    async with open_for_backup(server.settings("edge")) as (_, snapshots):
        assert not await snapshots.is_edge_running()
        changes = edge.job_store.changes()
        await anext(changes)
        assert await snapshots.is_edge_running()
        await changes.aclose()  # type: ignore[attr-defined]
        await snapshots.delete_all_streams()
        assert await snapshots.message_counts() == {}
