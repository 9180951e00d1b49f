"""The webhooks of owners: settings, signing secrets, webhooks for all jobs of an owner, and the log of deliveries.

All webhooks of an owner are one row, so that concurrent requests cannot exceed the limit. The log has one row for each
state of a job and each webhook, and keeps it for 30 days.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, NamedTuple

import structlog
from msgspec import Meta, Struct, structs

from bus.compare_and_set import update_row
from bus.interface import Bus, RevisionConflict, RowUnreadable, Table, WebhookDelivery
from edge.core.clock import Clock, Entropy
from edge.core.concurrency import gather_bounded, translate_errors
from edge.index.rows import decode_cursor, encode_cursor
from edge.jobs.submission import check_client_url
from edge.outbound import AllowList
from schemas.job import FINAL_STATUSES, Job, JobKey, Moment, Status, make_uuid7
from schemas.problems import FieldError, ProblemError
from schemas.settings_schema import SECRET
from schemas.webhook import (
    DISABLED_URL_LIMIT,
    OWNER_WEBHOOK_LIMIT,
    DeliveryId,
    DeliveryLogRow,
    DeliveryState,
    OwnerWebhook,
    OwnerWebhooks,
    WebhookConfig,
    delivery_key,
    is_secret,
    make_secret,
    parse_delivery_id,
)

ROTATION_GRACE = timedelta(hours=24)  # how long the previous secret also signs
_SECRET_BYTES = 32

_log = structlog.get_logger()


class WebhookSettings(Struct, frozen=True):
    """The `[webhooks]` section: secrets, targets and retries."""

    secret: Annotated[str, SECRET] = ""
    """Signs the webhooks of owners without a secret of their own: `whsec_` and 24 to 64 bytes in base64. Empty: a
    secret is created for each owner.
    """
    timeout_s: Annotated[float, Meta(gt=0)] = 20.0
    """How long one attempt may take, including the response."""
    at_once: Annotated[int, Meta(ge=1)] = 64
    """Attempts at the same time."""
    at_once_each: Annotated[int, Meta(ge=1)] = 4
    """Attempts at the same time to one receiver."""

    def __post_init__(self) -> None:
        if self.secret and not is_secret(self.secret):
            raise ValueError("`secret` must be whsec_ followed by 24 to 64 bytes in base64 (Standard Webhooks)")


class WebhookSecretStore:
    """The webhook configuration of each owner. `default`: the secret of owners without one; empty: create one each."""

    def __init__(self, table: Table[WebhookConfig], clock: Clock, entropy: Entropy, default: str = "") -> None:
        self._table = table
        self._clock = clock
        self._entropy = entropy
        self._default = default

    async def get(self, owner: str) -> WebhookConfig:
        """Return the configuration of `owner`; create it if there is neither a row nor a default. Raises BusError."""
        row = await self._table.get(owner)
        if row is not None:
            return row.value
        return self._new_config() if self._default else await self._update(owner, lambda config: config)

    async def rotate(self, owner: str, secret: str | None = None) -> WebhookConfig:
        """Set `secret` or a random one; the previous one also signs for ROTATION_GRACE. Raises ProblemError."""
        if secret is not None and not is_secret(secret):
            fault = FieldError("$.secret", "is not whsec_ followed by 24 to 64 bytes in base64")
            raise ProblemError("input_invalid", f"{fault.path}: {fault.message}", errors=(fault,))
        new_secret = secret or make_secret(self._entropy(_SECRET_BYTES))
        now = self._clock()
        with translate_errors():
            return await self._update(
                owner,
                lambda config: structs.replace(
                    config,
                    secret=new_secret,
                    created_at=now,
                    previous=config.secret,
                    previous_until=now + ROTATION_GRACE,
                ),
            )

    async def disable_receiver(self, owner: str, url: str) -> None:
        """Stop deliveries of `owner` to a receiver that answered 410 Gone. Raises BusError."""
        now = self._clock()

        def disable(config: WebhookConfig) -> WebhookConfig:
            urls = sorted({**config.disabled_urls, url: now}.items(), key=_disabled_at)
            return structs.replace(config, disabled_urls=dict(urls[-DISABLED_URL_LIMIT:]))

        await self._update(owner, disable)

    async def enable_receiver(self, owner: str, url: str) -> None:
        """Resume deliveries of `owner` to `url`. Raises BusError."""

        def enable(config: WebhookConfig) -> WebhookConfig:
            urls = {other: at for other, at in config.disabled_urls.items() if other != url}
            return structs.replace(config, disabled_urls=urls)

        if url in (await self.get(owner)).disabled_urls:
            await self._update(owner, enable)

    async def _update(self, owner: str, change: Callable[[WebhookConfig], WebhookConfig]) -> WebhookConfig:
        """Change the configuration of `owner`, and create it first if it does not exist."""
        new = self._new_config()
        row = (await update_row(self._table, owner, lambda config: change(config or new))).row
        return new if row is None else row.value

    def _new_config(self) -> WebhookConfig:
        return WebhookConfig(
            secret=self._default or make_secret(self._entropy(_SECRET_BYTES)), created_at=self._clock()
        )


def _disabled_at(item: tuple[str, datetime]) -> datetime:
    return item[1]


class AddedWebhook(NamedTuple):
    """A webhook, and whether it is new: the same URL with the same filter is the webhook that exists."""

    webhook: OwnerWebhook
    is_new: bool


class OwnerWebhookStore:
    """The owner-wide webhooks, in the broker's bucket OWNER_HOOKS."""

    def __init__(self, table: Table[OwnerWebhooks], url_allow_list: AllowList, clock: Clock, entropy: Entropy) -> None:
        self._table = table
        self._url_allow_list = url_allow_list
        self._clock = clock
        self._entropy = entropy

    async def list_webhooks(self, owner: str) -> tuple[OwnerWebhook, ...]:
        """Return the owner's webhooks, oldest first. Raises BusError."""
        row = await self._table.get(owner)
        return () if row is None else row.value.webhooks

    async def get(self, owner: str, webhook_id: str) -> OwnerWebhook:
        """Return one webhook. Raises ProblemError `not_found`."""
        with translate_errors():
            found = [one for one in await self.list_webhooks(owner) if one.id == webhook_id]
        if not found:
            raise _webhook_not_found(webhook_id)
        return found[0]

    async def has(self, owner: str, webhook_id: str) -> bool:
        """Return whether the webhook exists; the empty id, which stands for the job's own webhook, always does."""
        return not webhook_id or any(one.id == webhook_id for one in await self.list_webhooks(owner))

    async def find_matching(self, job: Job) -> tuple[OwnerWebhook, ...]:
        """Return the webhooks of the job's owner that want its state. Raises BusError.

        A row that cannot be read must not hold up the states of other owners, so it counts as empty.
        """
        if job.status not in FINAL_STATUSES:
            return ()
        try:
            webhooks = await self.list_webhooks(job.owner)
        except RowUnreadable as error:
            _log.error("owner_webhooks_unreadable", owner=job.owner, error=str(error))
            return ()
        return tuple(one for one in webhooks if one.matches(job))

    async def add(
        self, owner: str, url: str, endpoints: tuple[str, ...] = (), states: tuple[Status, ...] = ()
    ) -> AddedWebhook:
        """Add a webhook, or return the one with this URL and filter.

        Raises ProblemError `url_refused`, `quota_exceeded`.
        """
        check_client_url(url, "$.url", self._url_allow_list)
        now = self._clock()
        new = OwnerWebhook(
            id=make_uuid7(int(now.timestamp() * 1000), self._entropy(10)),
            url=url,
            created_at=now,
            endpoints=tuple(sorted(set(endpoints))),
            states=tuple(status for status in Status if status in states),
        )

        def change(row: OwnerWebhooks | None) -> OwnerWebhooks:
            webhooks = row.webhooks if row else ()
            if any(_is_same(one, new) for one in webhooks):
                return OwnerWebhooks(webhooks=webhooks)
            if len(webhooks) >= OWNER_WEBHOOK_LIMIT:
                raise ProblemError(
                    "quota_exceeded", f"an owner has at most {OWNER_WEBHOOK_LIMIT} webhooks: delete one, then try again"
                )
            return OwnerWebhooks(webhooks=(*webhooks, new))

        with translate_errors():
            row = (await update_row(self._table, owner, change)).row
        stored = next(one for one in (row.value.webhooks if row else ()) if _is_same(one, new))
        return AddedWebhook(stored, is_new=stored.id == new.id)

    async def remove(self, owner: str, webhook_id: str) -> OwnerWebhook:
        """Remove a webhook and return it; what waits for it is not sent any more. Raises ProblemError `not_found`."""
        removed = await self.get(owner, webhook_id)

        def change(row: OwnerWebhooks | None) -> OwnerWebhooks | None:
            return row and OwnerWebhooks(webhooks=tuple(one for one in row.webhooks if one.id != webhook_id))

        with translate_errors():
            await update_row(self._table, owner, change)
        return removed


def _is_same(one: OwnerWebhook, other: OwnerWebhook) -> bool:
    return structs.replace(one, id=other.id, created_at=other.created_at) == other


def _webhook_not_found(webhook_id: str) -> ProblemError:
    return ProblemError("not_found", f"there is no webhook {webhook_id}: GET /v1/webhooks lists them")


LOG_SCAN_LIMIT = 1000  # rows that one page reads at most, however few of them match
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
            scanned = places[:LOG_SCAN_LIMIT]
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
