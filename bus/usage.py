"""USAGE over the broker. Every row has a subject of its own, so that whoever writes it second is told so."""

from datetime import datetime

import msgspec

from bus import subjects, uses
from bus.jetstream import JetStream
from bus.ordered import Reading, held
from bus.port import Conflict
from bus.topology import USAGE
from schemas.usage import JobUse, PowerUse, Use


class StreamLedger:
    """Once is kept by the subject and not by Msg-Id: the broker forgets those after minutes, and over a restart."""

    def __init__(self, js: JetStream) -> None:
        self._js = js

    async def put(self, row: Use) -> bool:
        """Expects its subject to be empty."""
        try:
            await self._js.write(subjects.use(row), msgspec.json.encode(row), expect=0)
        except Conflict:
            return False
        return True

    async def jobs(self, since: datetime) -> list[JobUse]:
        """Through a consumer of its own."""
        return [row for data in await self._held(subjects.JOB_USES, since) if (row := uses.of_job(data))]

    async def spans(self, since: datetime) -> list[PowerUse]:
        """Likewise."""
        return [row for data in await self._held(subjects.POWER_USES, since) if (row := uses.of_power(data))]

    async def last(self) -> JobUse | None:
        """One request."""
        found = await self._js.last(USAGE.name, subjects.JOB_USES)
        return uses.of_job(found.data) if found else None

    async def erase(self, owner: str) -> int:
        """One by one."""
        return await self._js.erase(USAGE.name, subjects.uses_of(owner))

    async def _held(self, pattern: str, since: datetime) -> list[bytes]:
        return [item.data for item in await held(self._js, Reading(USAGE.name, pattern, since=since))]
