"""The log of deliveries: one row for each state of a job that has a webhook, kept for 30 days."""

from collections.abc import Sequence
from contextlib import suppress

from msgspec import structs

from bus.interface import Bus, RevisionConflict, WebhookDelivery
from edge.core.clock import Clock
from edge.core.error_handling import translate_errors
from edge.webhooks.secrets import WebhookSecretStore
from schemas.ids import JobKey
from schemas.problems import ProblemError
from schemas.webhook import DeliveryLogRow, DeliveryState, delivery_key, parse_delivery_id


class DeliveryLog:
    """What was sent, and sending it anew."""

    def __init__(self, bus: Bus, secrets: WebhookSecretStore, clock: Clock) -> None:
        self._bus = bus
        self._secrets = secrets
        self._clock = clock

    async def enqueue(self, letter: WebhookDelivery) -> None:
        """Take a state over for delivery, its row first. Done again it changes nothing. Raises BusError."""
        job = letter.record.job
        if job.webhook is None:
            return
        row = DeliveryLogRow(
            job_id=job.id,
            revision=letter.revision,
            status=job.status,
            url=job.webhook.url,
            created_at=self._clock(),
        )
        with suppress(RevisionConflict):  # an edge wrote it and died before it was done: the letter may be missing
            await self._bus.delivery_log.create(delivery_key(job.key, letter.revision), row)
        await self._bus.webhook_outbox.enqueue(letter)

    async def list_for_job(self, key: JobKey) -> Sequence[DeliveryLogRow]:
        """The job's deliveries, oldest first. Raises Refused."""
        with translate_errors():
            rows = await self._bus.delivery_log.rows(f"{key.owner}.{key.id}.")
        return sorted((row.value for row in rows.values()), key=lambda row: row.revision)

    async def replay(self, owner: str, delivery: str) -> DeliveryLogRow:
        """Send it anew, under the same id, to a receiver that counts as back. Raises Refused `not_found`."""
        named = parse_delivery_id(delivery)
        missing = ProblemError(
            "not_found", "there is no such delivery: GET /v1/jobs/{id}/deliveries lists those of a job"
        )
        if named is None:
            raise missing
        key, revision = JobKey(owner, named[0]), named[1]
        with translate_errors():
            row = await self._bus.delivery_log.get(delivery_key(key, revision))
            kept = [entry for entry in await self._bus.job_store.history(key) if entry.revision == revision]
            if row is None or not kept:
                raise missing
            anew = structs.replace(
                row.value,
                state=DeliveryState.PENDING,
                failed_attempts=0,
                next_attempt_at=None,
                replays=row.value.replays + 1,
            )
            await self._secrets.enable_receiver(owner, anew.url)
            await self._bus.delivery_log.update(delivery_key(key, revision), anew, row.revision)
            await self._bus.webhook_outbox.enqueue(WebhookDelivery(revision, kept[0].record, anew.replays))
        return anew
