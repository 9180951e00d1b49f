"""USAGE over the broker. Every row has a subject of its own, so that whoever writes it second is told so."""

from datetime import datetime

import msgspec

from bus.interface import RevisionConflict
from bus.nats import codec, subjects
from bus.nats.jetstream import JetStreamClient
from bus.nats.ordered_consumer import ReadRequest, read_all
from bus.nats.topology import USAGE
from schemas.usage import JobUsage, PowerUsage, UsageRow


class NatsUsageLog:
    """Once is kept by the subject and not by Msg-Id: the broker forgets those after minutes, and over a restart."""

    def __init__(self, js: JetStreamClient) -> None:
        self._js = js

    async def add(self, row: UsageRow) -> bool:
        """Expects its subject to be empty."""
        try:
            await self._js.publish(subjects.usage_subject(row), msgspec.json.encode(row), expect=0)
        except RevisionConflict:
            return False
        return True

    async def job_rows(self, since: datetime) -> list[JobUsage]:
        """Through a consumer of its own."""
        return [
            row
            for data in await self._read_rows(subjects.JOB_USAGE_SUBJECTS, since)
            if (row := codec.try_decode_job_usage(data))
        ]

    async def power_rows(self, since: datetime) -> list[PowerUsage]:
        """Likewise."""
        return [
            row
            for data in await self._read_rows(subjects.POWER_USAGE_SUBJECTS, since)
            if (row := codec.try_decode_power_usage(data))
        ]

    async def last_job_row(self) -> JobUsage | None:
        """One request."""
        found = await self._js.get_last(USAGE.name, subjects.JOB_USAGE_SUBJECTS)
        return codec.try_decode_job_usage(found.data) if found else None

    async def delete_owner(self, owner: str) -> int:
        """One by one."""
        return await self._js.secure_delete_subject(USAGE.name, subjects.owner_usage_subjects(owner))

    async def _read_rows(self, pattern: str, since: datetime) -> list[bytes]:
        return [item.data for item in await read_all(self._js, ReadRequest(USAGE.name, pattern, since=since))]
