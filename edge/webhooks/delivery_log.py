"""The log of webhook deliveries: one row for each state of a job and each webhook, kept for 30 days."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from msgspec import Struct, structs

from bus.interface import Bus, RevisionConflict, RowUnreadable, WebhookDelivery
from edge.core.clock import Clock
from edge.core.concurrency import gather_bounded
from edge.core.error_handling import translate_errors
from edge.index.paging import decode_cursor, encode_cursor
from edge.webhooks.owner_webhooks import OwnerWebhookStore
from edge.webhooks.secrets import WebhookSecretStore
from schemas.ids import JobKey
from schemas.job import Moment
from schemas.problems import ProblemError
from schemas.webhook import DeliveryId, DeliveryLogRow, DeliveryState, delivery_key, parse_delivery_id

SCAN_LIMIT = 1000  # rows that one page reads at most, however few of them match
_BATCH_ROWS = 100
_CONCURRENT_READS_LIMIT = 16
_OF_JOB = "-"  # in the place of an id in a cursor, and sorted before all of them


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

    def __init__(self, bus: Bus, secrets: WebhookSecretStore, owner_webhooks: OwnerWebhookStore, clock: Clock) -> None:
        self._bus = bus
        self._secrets = secrets
        self._owner_webhooks = owner_webhooks
        self._clock = clock

    async def enqueue(self, delivery: WebhookDelivery, url: str) -> None:
        """Write the row, then enqueue the delivery to `url`. Idempotent. Raises BusError."""
        job = delivery.record.job
        row = DeliveryLogRow(
            job_id=job.id,
            revision=delivery.revision,
            status=job.status,
            url=url,
            created_at=self._clock(),
            webhook=delivery.webhook,
        )
        with suppress(RevisionConflict):  # an edge wrote the row and died before it enqueued the delivery
            await self._bus.delivery_log.create(row_key(delivery), row)
        await self._bus.webhook_outbox.enqueue(delivery)

    async def list_for_job(self, key: JobKey) -> Sequence[DeliveryLogRow]:
        """Return the job's deliveries, oldest first. Raises ProblemError."""
        with translate_errors():
            rows = await self._bus.delivery_log.rows(f"{key.owner}.{key.id}.")
        return sorted((row.value for row in rows.values()), key=lambda row: (row.revision, row.webhook))

    async def list_page(
        self, owner: str, filters: DeliveryFilters, limit: int, cursor: str | None = None
    ) -> DeliveryPage:
        """Return the owner's deliveries that match, newest first. Raises ProblemError.

        A page ends after SCAN_LIMIT rows, so it may have fewer than `limit` rows and still not be the last one.
        """
        before = decode_cursor(cursor) if cursor else None
        with translate_errors():
            names = {_parse_place(name): name for name in await self._bus.delivery_log.keys(f"{owner}.>")}
            places = sorted((place for place in names if before is None or place < before), reverse=True)
            found: list[DeliveryLogRow] = []
            scanned = places[:SCAN_LIMIT]
            for start in range(0, len(scanned), _BATCH_ROWS):
                reads = [partial(self._read, names[place]) for place in scanned[start : start + _BATCH_ROWS]]
                rows = await gather_bounded(reads, _CONCURRENT_READS_LIMIT)
                found += [row for row in rows if row is not None and filters.match(row)]
                if len(found) > limit:
                    break
        if len(found) > limit:
            return DeliveryPage(tuple(found[:limit]), encode_cursor(*_place_of(found[limit - 1])))
        return DeliveryPage(tuple(found), encode_cursor(*scanned[-1]) if len(scanned) < len(places) else None)

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
        key, name = JobKey(owner, parsed.job_id), delivery_key(owner, parsed)
        with translate_errors():
            row = await self._bus.delivery_log.get(name)
            entries = [entry for entry in await self._bus.job_store.history(key) if entry.revision == parsed.revision]
            if row is None or not entries:
                raise missing
            if not await self._owner_webhooks.has(owner, parsed.webhook):
                raise ProblemError("conflict", "the webhook of this delivery was deleted: read the job instead")
            replayed = structs.replace(
                row.value,
                state=DeliveryState.PENDING,
                failed_attempts=0,
                next_attempt_at=None,
                replays=row.value.replays + 1,
            )
            await self._secrets.enable_receiver(owner, replayed.url)
            await self._bus.delivery_log.update(name, replayed, row.revision)
            again = WebhookDelivery(parsed.revision, entries[0].record, replayed.replays, parsed.webhook)
            await self._bus.webhook_outbox.enqueue(again)
        return replayed


def row_key(delivery: WebhookDelivery) -> str:
    """Return the key of a delivery's row in bucket DELIVERED."""
    job = delivery.record.job
    return delivery_key(job.owner, DeliveryId(job.id, delivery.revision, delivery.webhook))


def _parse_place(name: str) -> tuple[int, str]:
    """Return the place of a row in the list, by its key. Revisions are counted over all jobs, in order of time."""
    _, _, revision, *webhook = name.split(".")
    return int(revision), webhook[0] if webhook else _OF_JOB


def _place_of(row: DeliveryLogRow) -> tuple[int, str]:
    return row.revision, row.webhook or _OF_JOB
