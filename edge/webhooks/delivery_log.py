"""The log of webhook deliveries: one row for each state of a job that has a webhook, kept for 30 days."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from msgspec import Struct, structs

from bus.interface import Bus, RevisionConflict, RowUnreadable, WebhookDelivery
from edge.core.clock import Clock
from edge.core.concurrency import gather_bounded
from edge.core.error_handling import translate_errors
from edge.index.paging import decode_cursor, encode_cursor
from edge.webhooks.secrets import WebhookSecretStore
from schemas.ids import JobKey
from schemas.job import Moment
from schemas.problems import ProblemError
from schemas.webhook import DeliveryLogRow, DeliveryState, delivery_key, parse_delivery_id

SCAN_LIMIT = 1000  # rows that one page reads at most, however few of them match
_BATCH_ROWS = 100
_CONCURRENT_READS_LIMIT = 16


class DeliveryFilters(Struct, frozen=True):
    """The conditions of a list of deliveries; None and empty: no condition.

    `states`: any of them. `url`: occurs in the URL of the receiver. `created_from`: at this time or later.
    `created_to`: before it.
    """

    states: tuple[DeliveryState, ...] = ()
    url: str = ""
    created_from: Moment | None = None
    created_to: Moment | None = None

    def match(self, row: DeliveryLogRow) -> bool:
        """Return whether a delivery fulfils every condition."""
        return (
            (not self.states or row.state in self.states)
            and self.url in row.url
            and (self.created_from is None or row.created_at >= self.created_from)
            and (self.created_to is None or row.created_at < self.created_to)
        )


class DeliveryPage(Struct, frozen=True):
    """One page of deliveries, newest first. The last page has no `next_cursor`."""

    rows: tuple[DeliveryLogRow, ...]
    next_cursor: str | None


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

    async def list_page(
        self, owner: str, filters: DeliveryFilters, limit: int, cursor: str | None = None
    ) -> DeliveryPage:
        """Return the owner's deliveries that match, newest first. Raises ProblemError.

        A page ends after SCAN_LIMIT rows, so it may have fewer than `limit` rows and still not be the last one.
        """
        before = decode_cursor(cursor)[0] if cursor else None
        with translate_errors():
            names = {_revision_of(name): name for name in await self._bus.delivery_log.keys(f"{owner}.>")}
            revisions = sorted((revision for revision in names if before is None or revision < before), reverse=True)
            found: list[DeliveryLogRow] = []
            scanned = revisions[:SCAN_LIMIT]
            for start in range(0, len(scanned), _BATCH_ROWS):
                reads = [partial(self._read, names[revision]) for revision in scanned[start : start + _BATCH_ROWS]]
                rows = await gather_bounded(reads, _CONCURRENT_READS_LIMIT)
                found += [row for row in rows if row is not None and filters.match(row)]
                if len(found) > limit:
                    break
        if len(found) > limit:
            return DeliveryPage(tuple(found[:limit]), _make_cursor(found[limit - 1].revision))
        return DeliveryPage(tuple(found), _make_cursor(scanned[-1]) if len(scanned) < len(revisions) else None)

    async def _read(self, name: str) -> DeliveryLogRow | None:
        try:
            row = await self._bus.delivery_log.get(name)
        except RowUnreadable:
            return None
        return None if row is None else row.value

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


def _revision_of(name: str) -> int:
    """Return the revision at the end of a key of DELIVERED. Revisions are counted over all jobs, in order of time."""
    return int(name.rpartition(".")[2])


def _make_cursor(revision: int) -> str:
    return encode_cursor(revision, "delivery")
