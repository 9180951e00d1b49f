"""The port of USAGE: what was used, kept for bills and reports. `bus.usage` makes it true, `bus.memory.usage` too."""

from datetime import datetime
from typing import Protocol

from schemas.usage import JobUse, PowerUse, Use


class Ledger(Protocol):
    """One row for each round of a job that has ended, and for each span with power of a host. Kept for 400 days."""

    async def put(self, row: Use) -> bool:
        """Write the row; False when it is there already: one row is written once, whoever and however many write it."""
        ...

    async def jobs(self, since: datetime) -> list[JobUse]:
        """The rows of jobs that were written at `since` or later; older ones may be among them."""
        ...

    async def spans(self, since: datetime) -> list[PowerUse]:
        """The rows of hosts, likewise."""
        ...

    async def last(self) -> JobUse | None:
        """The row of a job that was written last; None when there is none."""
        ...

    async def erase(self, owner: str) -> int:
        """Erase every row of the owner's jobs, so that no byte stays; how many there were."""
        ...
