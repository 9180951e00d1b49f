"""Owner-wide webhooks: for the final states of all jobs of an owner, with a filter.

All webhooks of an owner are one row, so that concurrent requests cannot exceed the limit.
"""

from typing import NamedTuple

import structlog
from msgspec import structs

from bus.compare_and_set import update_row
from bus.interface import RowUnreadable, Table
from edge.core.clock import Clock, Entropy
from edge.core.error_handling import translate_errors
from edge.jobs.submission import check_url
from edge.outbound.url_policy import AllowList
from schemas.ids import make_uuid7
from schemas.job import Job
from schemas.problems import ProblemError
from schemas.status import FINAL_STATUSES, Status
from schemas.webhook import OWNER_WEBHOOK_LIMIT, OwnerWebhook, OwnerWebhooks

_log = structlog.get_logger()


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
            raise _not_found(webhook_id)
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
        check_url(url, "$.url", self._url_allow_list)
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


def _not_found(webhook_id: str) -> ProblemError:
    return ProblemError("not_found", f"there is no webhook {webhook_id}: GET /v1/webhooks lists them")
