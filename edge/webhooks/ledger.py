"""The log of deliveries: one row for each state of a job that has a webhook, kept for 30 days."""

from collections.abc import Sequence
from contextlib import suppress

from msgspec import structs

from bus.outgoing import Letter
from bus.port import Bus, Conflict
from edge.services.clock import Clock
from edge.services.refusals import refusing
from edge.webhooks.secrets import Secrets
from schemas.errors import Refused
from schemas.job import JobKey
from schemas.webhook import DeliveryRow, DeliveryState, delivery_key, parse_delivery_id


class Ledger:
    """What was sent, and sending it anew."""

    def __init__(self, bus: Bus, secrets: Secrets, clock: Clock) -> None:
        self._bus = bus
        self._secrets = secrets
        self._clock = clock

    async def send(self, letter: Letter) -> None:
        """Take a state over for delivery, its row first. Done again it changes nothing. Raises BusError."""
        job = letter.recorded.job
        if job.webhook is None:
            return
        row = DeliveryRow(
            job_id=job.id,
            revision=letter.revision,
            status=job.status,
            url=job.webhook.url,
            created_at=self._clock(),
        )
        with suppress(Conflict):  # an edge wrote it and died before it was done: the letter may be missing
            await self._bus.delivered.create(delivery_key(job.key, letter.revision), row)
        await self._bus.outbox.post(letter)

    async def of(self, key: JobKey) -> Sequence[DeliveryRow]:
        """The job's deliveries, oldest first. Raises Refused."""
        with refusing():
            rows = await self._bus.delivered.rows(f"{key.owner}.{key.id}.")
        return sorted((row.value for row in rows.values()), key=lambda row: row.revision)

    async def replay(self, owner: str, delivery: str) -> DeliveryRow:
        """Send it anew, under the same id, to a receiver that counts as back. Raises Refused `not_found`."""
        named = parse_delivery_id(delivery)
        missing = Refused("not_found", "there is no such delivery: GET /v1/jobs/{id}/deliveries lists those of a job")
        if named is None:
            raise missing
        key, revision = JobKey(owner, named[0]), named[1]
        with refusing():
            row = await self._bus.delivered.get(delivery_key(key, revision))
            kept = [entry for entry in await self._bus.records.history(key) if entry.revision == revision]
            if row is None or not kept:
                raise missing
            anew = structs.replace(
                row.value, state=DeliveryState.PENDING, failed=0, next_at=None, replays=row.value.replays + 1
            )
            await self._secrets.enable(owner, anew.url)
            await self._bus.delivered.update(delivery_key(key, revision), anew, row.revision)
            await self._bus.outbox.post(Letter(revision, kept[0].recorded, anew.replays))
        return anew


async def forget_deliveries(bus: Bus, key: JobKey) -> None:
    """Erase the job's letters and their log. Raises BusError."""
    await bus.outbox.withdraw(*key)
    for name in await bus.delivered.keys(f"{key.owner}.{key.id}.>"):
        await bus.delivered.delete(name)
