"""The log of webhook deliveries: one row for each state of a job that has a webhook, kept for 30 days."""

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
    """Rows of the delivery log, and the replay of a delivery."""

    def __init__(self, bus: Bus, secrets: WebhookSecretStore, clock: Clock) -> None:
        self._bus = bus
        self._secrets = secrets
        self._clock = clock

    async def enqueue(self, delivery: WebhookDelivery) -> None:
        """Write the row, then enqueue the delivery. Idempotent. Raises BusError."""
        job = delivery.record.job
        if job.webhook is None:
            return
        row = DeliveryLogRow(
            job_id=job.id,
            revision=delivery.revision,
            status=job.status,
            url=job.webhook.url,
            created_at=self._clock(),
        )
        with suppress(RevisionConflict):  # an edge wrote the row and died before it enqueued the delivery
            await self._bus.delivery_log.create(delivery_key(job.key, delivery.revision), row)
        await self._bus.webhook_outbox.enqueue(delivery)

    async def list_for_job(self, key: JobKey) -> Sequence[DeliveryLogRow]:
        """Return the job's deliveries, oldest first. Raises ProblemError."""
        with translate_errors():
            rows = await self._bus.delivery_log.rows(f"{key.owner}.{key.id}.")
        return sorted((row.value for row in rows.values()), key=lambda row: row.revision)

    async def replay(self, owner: str, delivery: str) -> DeliveryLogRow:
        """Send a delivery again under the same id, and enable its receiver. Raises ProblemError `not_found`."""
        parsed = parse_delivery_id(delivery)
        missing = ProblemError(
            "not_found", "this delivery does not exist: GET /v1/jobs/{id}/deliveries lists those of a job"
        )
        if parsed is None:
            raise missing
        key, revision = JobKey(owner, parsed[0]), parsed[1]
        with translate_errors():
            row = await self._bus.delivery_log.get(delivery_key(key, revision))
            entries = [entry for entry in await self._bus.job_store.history(key) if entry.revision == revision]
            if row is None or not entries:
                raise missing
            replayed = structs.replace(
                row.value,
                state=DeliveryState.PENDING,
                failed_attempts=0,
                next_attempt_at=None,
                replays=row.value.replays + 1,
            )
            await self._secrets.enable_receiver(owner, replayed.url)
            await self._bus.delivery_log.update(delivery_key(key, revision), replayed, row.revision)
            await self._bus.webhook_outbox.enqueue(WebhookDelivery(revision, entries[0].record, replayed.replays))
        return replayed
