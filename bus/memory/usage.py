"""USAGE in memory."""

from datetime import datetime

import msgspec

from bus import subjects, uses
from bus.memory.link import MemoryLink
from bus.memory.log import Log
from bus.port import Conflict
from schemas.usage import JobUse, PowerUse, Use


class MemoryLedger:
    """What one connection does with USAGE. Rows are given whenever they were written: its clock is no calendar."""

    def __init__(self, link: MemoryLink, log: Log) -> None:
        self._link = link
        self._log = log

    async def put(self, row: Use) -> bool:
        """Expects its subject to be empty."""
        await self._link.reach()
        try:
            self._log.append(subjects.use(row), msgspec.json.encode(row), expect=0)
        except Conflict:
            return False
        return True

    async def jobs(self, since: datetime) -> list[JobUse]:
        """All."""
        return [row for data in await self._held(subjects.JOB_USES) if (row := uses.of_job(data))]

    async def spans(self, since: datetime) -> list[PowerUse]:
        """All."""
        return [row for data in await self._held(subjects.POWER_USES) if (row := uses.of_power(data))]

    async def last(self) -> JobUse | None:
        """The newest."""
        held = await self._held(subjects.JOB_USES)
        return uses.of_job(held[-1]) if held else None

    async def erase(self, owner: str) -> int:
        """One by one."""
        await self._link.reach()
        found = self._log.behind(0, subjects.uses_of(owner).removesuffix(">"))
        for message in found:
            self._log.erase(message.sequence)
        return len(found)

    async def _held(self, pattern: str) -> list[bytes]:
        await self._link.reach()
        return [message.data for message in self._log.behind(0, pattern.removesuffix(">"))]
