"""The port of STATE. `bus.state` makes it true, `bus.memory.records` too."""

from collections.abc import AsyncIterator
from typing import Protocol

from msgspec import Struct

from schemas.events import Recorded
from schemas.job import JobKey


class Entry(Struct, frozen=True):
    """A record and the revision of STATE it was read at."""

    revision: int
    recorded: Recorded


class Change(Struct, frozen=True):
    """One step of STATE's own stream; `recorded` None: the record was deleted, or its bytes are unreadable."""

    revision: int
    key: JobKey
    recorded: Recorded | None


class CaughtUp(Struct, frozen=True):
    """Everything that was there when the stream was opened has been given."""


class Records(Protocol):
    """STATE: what happened, and each job as it became. The last revision of a key is the truth."""

    async def read(self, key: JobKey) -> Entry | None:
        """The last record, from the leader; None when there is none or it was deleted. RecordUnreadable on rubbish."""
        ...

    async def create(self, key: JobKey, recorded: Recorded) -> int:
        """Write the first record, return its revision; Conflict when there is one."""
        ...

    async def update(self, key: JobKey, recorded: Recorded, revision: int) -> int:
        """Write behind `revision`, return the new one; Conflict when the record is past it."""
        ...

    async def history(self, key: JobKey) -> list[Entry]:
        """The revisions that are kept (the last 64), oldest first. Empty when there is no job."""
        ...

    async def delete(self, key: JobKey, revision: int | None) -> None:
        """Leave a delete marker behind `revision` (Conflict when past it) and erase every revision before it.

        None: whatever it is at, an unreadable one too.

        The marker goes by itself an hour later.
        """
        ...

    def changes(self, after: int = 0) -> AsyncIterator[Change | CaughtUp]:
        """Every change behind revision `after`, without end; from 0: the last of every key, CaughtUp, then live.

        Re-opens by itself behind the last change given when the broker comes back.
        """
        ...

    async def keys(self) -> set[JobKey]:
        """Every key with a living record; deleted ones left out."""
        ...
