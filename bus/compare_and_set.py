"""Change a job's record or a table's row by compare-and-set: read, decide, write; again when another writer was first.

The decision is made again for each value that was read, so it never acts on a stale one. Raises what the store or table
raises, and what `decide` raises. After a BrokerUnreachable it is unknown whether the value was written.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Generic, NamedTuple, Protocol, TypeVar

from bus.interface import RevisionConflict, Table, TableRow, VersionedRecord
from schemas.events import JobEvent, JobRecord
from schemas.job import Job, JobKey
from schemas.lifecycle import next_record

T = TypeVar("T")

CONFLICT_LIMIT = 50  # every conflict is another writer's success, so this many in a row means a bug or an attack


class RecordStore(Protocol):
    """The part of `bus.interface.JobStore` that a transition needs."""

    async def read(self, key: JobKey) -> VersionedRecord | None:
        """Return the last record; None when the job does not exist."""
        ...

    async def update(self, key: JobKey, record: JobRecord, revision: int) -> int:
        """Write after `revision` and return the new one; RevisionConflict when the record is past it."""
        ...


class Transition(NamedTuple):
    """The record as it is now, None when the job does not exist; and whether this call wrote it."""

    entry: VersionedRecord | None
    is_written: bool


class RowUpdate(NamedTuple, Generic[T]):
    """The row as it is now, None when it does not exist; and whether this call wrote it."""

    row: TableRow[T] | None
    is_written: bool


async def transition(
    store: RecordStore,
    key: JobKey,
    decide: Callable[[Job], Awaitable[JobEvent | None]],
    event_time: Callable[[Job], datetime],
    *,
    conflict_limit: int = CONFLICT_LIMIT,
) -> Transition:
    """Write the event that `decide` chooses for the job as it is recorded; None from `decide` leaves the job alone.

    `event_time` gives the time of the event. Raises IllegalTransition when the state machine does not allow the event,
    and RevisionConflict after `conflict_limit` conflicts.
    """
    for _ in range(conflict_limit):
        entry = await store.read(key)
        if entry is None:
            return Transition(None, is_written=False)
        event = await decide(entry.record.job)
        if event is None:
            return Transition(entry, is_written=False)
        record = next_record(entry.record.job, event, event_time(entry.record.job))
        try:
            revision = await store.update(key, record, entry.revision)
        except RevisionConflict:
            continue
        return Transition(VersionedRecord(revision, record), is_written=True)
    raise RevisionConflict(f"{key.owner}/{key.id} was changed by others {conflict_limit} times in a row: try again")


async def update_row(
    table: Table[T], key: str, decide: Callable[[T | None], T | None], *, conflict_limit: int = CONFLICT_LIMIT
) -> RowUpdate[T]:
    """Write the value that `decide` makes of the row's value, or of None when the row does not exist.

    When `decide` returns None or the same value, the row is left alone. Raises RevisionConflict after `conflict_limit`
    conflicts, and RowUnreadable.
    """
    for _ in range(conflict_limit):
        row = await table.get(key)
        before = None if row is None else row.value
        value = decide(before)
        if value is None or value == before:
            return RowUpdate(row, is_written=False)
        try:
            revision = await (table.create(key, value) if row is None else table.update(key, value, row.revision))
        except RevisionConflict:
            continue
        return RowUpdate(TableRow(revision, value), is_written=True)
    raise RevisionConflict(f"the row {key} was changed by others {conflict_limit} times in a row: try again")
