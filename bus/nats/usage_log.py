"""USAGE over the broker. Each row has its own subject, so that a second write of it is refused."""

from datetime import datetime

import msgspec

from bus.interface import RevisionConflict
from bus.nats import codec, subjects
from bus.nats.jetstream import JetStreamClient
from bus.nats.ordered_consumer import ReadRequest, read_all
from bus.nats.topology import USAGE
from schemas.usage import JobUsage, PowerUsage, UsageRow


class NatsUsageLog:
    """USAGE.

    The subject keeps a row unique, not the Msg-Id, which the broker forgets after minutes and at a restart.
    """

    def __init__(self, jetstream: JetStreamClient) -> None:
        self._jetstream = jetstream

    async def add(self, row: UsageRow) -> bool:
        """Publish with the expectation that the subject is empty."""
        try:
            await self._jetstream.publish(subjects.usage_subject(row), msgspec.json.encode(row), expect=0)
        except RevisionConflict:
            return False
        return True

    async def job_rows(self, since: datetime) -> list[JobUsage]:
        """Read the rows through a consumer that starts at `since`."""
        return [
            row
            for data in await self._read_rows(subjects.JOB_USAGE_SUBJECTS, since)
            if (row := codec.try_decode_job_usage(data))
        ]

    async def power_rows(self, since: datetime) -> list[PowerUsage]:
        """Read the rows through a consumer that starts at `since`."""
        return [
            row
            for data in await self._read_rows(subjects.POWER_USAGE_SUBJECTS, since)
            if (row := codec.try_decode_power_usage(data))
        ]

    async def last_job_row(self) -> JobUsage | None:
        """Read the last message of all jobs, in one request."""
        found = await self._jetstream.get_last(USAGE.name, subjects.JOB_USAGE_SUBJECTS)
        return codec.try_decode_job_usage(found.data) if found else None

    async def delete_owner(self, owner: str) -> int:
        """Overwrite the rows one by one."""
        return await self._jetstream.secure_delete_subject(USAGE.name, subjects.owner_usage_subjects(owner))

    async def _read_rows(self, pattern: str, since: datetime) -> list[bytes]:
        return [item.data for item in await read_all(self._jetstream, ReadRequest(USAGE.name, pattern, since=since))]
