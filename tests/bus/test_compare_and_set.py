"""Changing records and rows beside other writers."""

from datetime import datetime

import pytest
from msgspec.structs import replace

from bus.compare_and_set import transition, update_row
from bus.interface import Bus, RevisionConflict, VersionedRecord
from schemas.events import JobEvent, JobRecord, Queued, Reprioritised, Submitted
from schemas.installation import Lease
from schemas.job import Job, JobKey, Priority, Status
from schemas.lifecycle import IllegalTransition, next_record
from tests.support.fake_bus import FakeBroker
from tests.support.schema_samples import LATER, NOW, make_job

KEY = JobKey("ada", "j1")


@pytest.fixture
async def bus() -> Bus:
    edge = FakeBroker().connect()
    await edge.job_store.create(KEY, JobRecord(NOW, Submitted(), make_job(Status.QUEUED)))
    await edge.leases.create("sweep", Lease("edge-1", NOW))
    return edge


class BusyStore:
    """Another writer is faster at each of the first `conflicts` writes."""

    def __init__(self, bus: Bus, conflicts: int) -> None:
        self._bus = bus
        self._conflicts = conflicts
        self.priorities_seen: list[Priority] = []

    async def read(self, key: JobKey) -> VersionedRecord | None:
        return await self._bus.job_store.read(key)

    async def update(self, key: JobKey, recorded: JobRecord, revision: int) -> int:
        if self._conflicts:
            self._conflicts -= 1
            entry = await self._bus.job_store.read(key)
            assert entry is not None
            other = next_record(entry.record.job, Reprioritised(Priority.HIGH), NOW)
            await self._bus.job_store.update(key, other, entry.revision)
        return await self._bus.job_store.update(key, recorded, revision)

    async def make_low(self, job: Job) -> JobEvent | None:
        self.priorities_seen.append(job.priority)
        return None if job.priority is Priority.LOW else Reprioritised(Priority.LOW)


def event_time(_: Job) -> datetime:
    return LATER


async def test_the_decision_is_made_anew_for_what_another_writer_wrote(bus: Bus):
    store = BusyStore(bus, conflicts=2)
    done = await transition(store, KEY, store.make_low, event_time)
    assert done.is_written
    assert store.priorities_seen == [Priority.NORMAL, Priority.HIGH, Priority.HIGH]
    assert done.entry == await bus.job_store.read(KEY)
    assert done.entry is not None
    assert (done.entry.record.at, done.entry.record.job.priority) == (LATER, Priority.LOW)


async def test_a_decision_for_nothing_writes_nothing(bus: Bus):
    store = BusyStore(bus, conflicts=0)
    first = await transition(store, KEY, store.make_low, event_time)
    again = await transition(store, KEY, store.make_low, event_time)
    assert (again.entry, again.is_written) == (first.entry, False)


async def test_a_job_without_a_record_is_not_decided_on(bus: Bus):
    store = BusyStore(bus, conflicts=0)
    assert await transition(store, JobKey("ada", "none"), store.make_low, event_time) == (None, False)
    assert store.priorities_seen == []


async def test_an_illegal_event_is_raised_and_not_written(bus: Bus):
    async def queue_again(_: Job) -> JobEvent:
        return Queued()

    before = await bus.job_store.read(KEY)
    with pytest.raises(IllegalTransition):
        await transition(bus.job_store, KEY, queue_again, event_time)
    assert await bus.job_store.read(KEY) == before


async def test_a_record_that_never_holds_still_is_a_conflict(bus: Bus):
    store = BusyStore(bus, conflicts=3)
    with pytest.raises(RevisionConflict, match="ada/j1 was changed by others 3 times in a row"):
        await transition(store, KEY, store.make_low, event_time, conflict_limit=3)


async def test_the_last_allowed_attempt_may_still_write(bus: Bus):
    store = BusyStore(bus, conflicts=2)
    assert (await transition(store, KEY, store.make_low, event_time, conflict_limit=3)).is_written


async def test_a_row_is_changed_beside_another_writer(bus: Bus):
    seen: list[str] = []

    def take_over(lease: Lease | None) -> Lease:
        assert lease is not None
        seen.append(lease.holder)
        return replace(lease, holder=f"{lease.holder}+")

    class BusyTable:
        def __getattr__(self, name: str) -> object:
            return getattr(bus.leases, name)

        async def update(self, key: str, value: Lease, revision: int) -> int:
            if len(seen) == 1:
                await bus.leases.put(key, Lease("edge-2", NOW))
            return await bus.leases.update(key, value, revision)

    done = await update_row(BusyTable(), "sweep", take_over)
    assert seen == ["edge-1", "edge-2"]
    assert (done.is_written, done.row) == (True, await bus.leases.get("sweep"))
    assert done.row is not None
    assert done.row.value.holder == "edge-2+"


async def test_a_row_that_is_not_there_is_made_or_left_alone(bus: Bus):
    assert await update_row(bus.leases, "new", lambda lease: lease) == (None, False)
    made = await update_row(bus.leases, "new", lambda lease: lease or Lease("edge-1", NOW))
    assert (made.is_written, made.row) == (True, await bus.leases.get("new"))


async def test_a_row_that_would_not_change_is_not_written(bus: Bus):
    before = await bus.leases.get("sweep")
    assert await update_row(bus.leases, "sweep", lambda lease: lease) == (before, False)
    assert await bus.leases.get("sweep") == before


async def test_a_row_that_never_holds_still_is_a_conflict(bus: Bus):
    class StaleTable:
        get = bus.leases.get

        async def update(self, key: str, value: Lease, revision: int) -> int:
            return await bus.leases.update(key, value, revision - 1)

    with pytest.raises(RevisionConflict, match="the row sweep was changed by others 4 times in a row"):
        await update_row(StaleTable(), "sweep", lambda _: Lease("edge-9", NOW), conflict_limit=4)
