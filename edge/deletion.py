"""Deleting a whole owner: a durable job of its own, done again and again until nothing is found any more.

A row of ERASURES says that it is wanted and what went so far; whichever edge holds the lease does it, so that it goes
on after a crash. Nothing new of the owner is taken meanwhile, and because other edges learn of that seconds later, it
is done only when nothing was found for a while. Every step counts what it removed, and may be cut off anywhere.
"""

from collections.abc import Sequence
from datetime import timedelta
from itertools import islice

import structlog
from anyio import CapacityLimiter, Event, create_task_group, move_on_after
from msgspec import Struct, structs

from bus.interface import Bus, BusError, RevisionConflict, RowUnreadable
from edge.assets.service import TRASH_RETENTION, AssetService
from edge.assets.uploads import UploadService
from edge.core.clock import Clock
from edge.core.error_handling import translate_errors
from edge.core.leases import Leases
from edge.index.index import JobIndex
from edge.jobs.service import JobService
from edge.owners.api_keys import ApiKeyStore
from edge.owners.quotas import OwnerQuotas
from edge.store.port import StoreError
from schemas.auth import Scope
from schemas.events import RecordUnreadable
from schemas.ids import JobKey
from schemas.owner_deletion import DeletionCounts, OwnerDeletion, OwnerDeletionState
from schemas.problems import ProblemError
from schemas.status import FINAL_STATUSES

SWEEP_INTERVAL_S = 2.0  # another edge refuses an owner this long after the first, at the latest
QUIET_PERIOD = timedelta(seconds=10)  # a key is known elsewhere for 5 s, and what it began may take as long
_LEASE_SCOPE = "erasures"  # of its leases
_CONCURRENT_JOBS_LIMIT = 8
_PROGRESS_BATCH_JOBS = 200  # jobs between two words about the progress
_CONFLICT_RETRIES_LIMIT = 50

_log = structlog.get_logger()


class DeletionServices(Struct, frozen=True, kw_only=True):
    """The services that hold things of an owner."""

    bus: Bus
    job_service: JobService
    assets: AssetService
    uploads: UploadService
    keys: ApiKeyStore
    index: JobIndex
    quotas: OwnerQuotas


class OwnerDeletionService:
    """`run` does what is asked for with `begin`. `trash_for`: how long deleted bytes lie in the store's trash."""

    def __init__(
        self, reach: DeletionServices, leases: Leases, clock: Clock, trash_for: timedelta = TRASH_RETENTION
    ) -> None:
        self._services = reach
        self._bus = reach.bus
        self._leases = leases
        self._clock = clock
        self._quiet_period = trash_for + QUIET_PERIOD
        self._requested = Event()

    async def start(self, owner: str, by: str = "") -> OwnerDeletion:
        """Delete the owner from now on; asked again it is the same deletion, a new one if things came since.

        Raises Refused `conflict` for an owner that a host goes by.
        """
        with translate_errors():
            keys = await self._services.keys.list(owner)
            if any(Scope.RUNNER in key.scopes for key in keys):
                raise ProblemError(
                    "conflict", f"{owner} has the key of a host: remove that host, or revoke the key, first"
                )
            row = await self._bus.owner_deletions.get(owner)
            if row is not None and (row.value.state is not OwnerDeletionState.DONE or not await self._has_data(owner)):
                return row.value
            asked = OwnerDeletion(owner=owner, requested_at=self._clock(), requested_by=by)
            try:
                await self._bus.owner_deletions.update(owner, asked, row.revision if row else 0)
            except RevisionConflict:
                return await self.start(owner, by)
        self._services.quotas.deleting_owners |= {owner}
        self._requested.set()
        return asked

    async def report(self, owner: str) -> OwnerDeletion:
        """How far it is. Refused `not_found` when it was never asked for, or a month ago."""
        with translate_errors():
            row = await self._bus.owner_deletions.get(owner)
        if row is None:
            raise ProblemError("not_found", f"no deletion of {owner} was asked for")
        return row.value

    async def _has_data(self, owner: str) -> bool:
        jobs = {count.owner for count in self._services.index.count_jobs()}
        return owner in jobs or bool(
            await self._bus.asset_references.keys(f"{owner}.>") or await self._services.keys.list(owner)
        )

    async def run(self) -> None:
        """Without end, from when the index has caught up."""
        await self._services.index.wait_until_caught_up()
        while True:
            try:
                await self.sweep()
            except (BusError, ProblemError, StoreError) as error:
                _log.warning("erasures_put_off", error=str(error))
            with move_on_after(SWEEP_INTERVAL_S):
                await self._requested.wait()
            self._requested = Event()

    async def sweep(self) -> None:
        """One look at what is asked for, and one step of each. Raises BusError, Refused, StoreError."""
        rows = await self._bus.owner_deletions.rows()
        wanted = {owner for owner, row in rows.items() if row.value.state is not OwnerDeletionState.DONE}
        self._services.quotas.deleting_owners = frozenset(wanted)
        for owner in sorted(wanted):
            # Every edge has a folder of its own for them.
            await self._record_progress(owner, DeletionCounts(uploads=await self._services.uploads.remove_all(owner)))
            async with self._leases.acquire(_LEASE_SCOPE, owner) as mine:
                if mine:
                    await self._delete_owner_data(owner)

    async def _delete_owner_data(self, owner: str) -> None:
        found = await self._record_progress(owner, DeletionCounts(keys=await self._revoke_keys(owner)))
        jobs = iter(sorted(key for key in await self._bus.job_store.keys() if key.owner == owner))
        living = 0
        while some := list(islice(jobs, _PROGRESS_BATCH_JOBS)):
            gone, left = await self._delete_jobs(some)
            living += left
            found += await self._record_progress(owner, gone, waiting_for=living)
        if living:
            return
        found += await self._record_progress(owner, await self._delete_messages(owner), waiting_for=0)
        if any(count.owner == owner for count in self._services.index.count_jobs()):
            return  # the index is behind: it would still find jobs that name the files
        dropped = [await self._drop_asset(owner, name) for name in await self._bus.asset_references.keys(f"{owner}.>")]
        gone = DeletionCounts(assets=len(dropped), bytes=sum(size for size, _ in dropped))
        found += await self._record_progress(owner, gone, hosts={host for _, hosts in dropped for host in hosts})
        await self._update_state(owner, found)

    async def _revoke_keys(self, owner: str) -> int:
        keys = await self._services.keys.list(owner)
        for key in keys:
            await self._services.keys.revoke(key.id)
        return len(keys)

    async def _delete_jobs(self, keys: Sequence[JobKey]) -> tuple[DeletionCounts, int]:
        """Stop and delete them; what went, and how many still run."""
        results: list[DeletionCounts | None] = []
        errors: list[Exception] = []
        places = CapacityLimiter(_CONCURRENT_JOBS_LIMIT)

        async def one(key: JobKey) -> None:
            async with places:
                try:
                    results.append(await self._delete_job(key))
                except (BusError, ProblemError) as error:
                    errors.append(error)

        async with create_task_group() as tasks:
            for key in keys:
                tasks.start_soon(one, key)
        if errors:
            raise errors[0]
        gone = [result for result in results if result is not None]
        return sum(gone, DeletionCounts()), len(results) - len(gone)

    async def _delete_job(self, key: JobKey) -> DeletionCounts | None:
        """None: it has not ended yet."""
        try:
            entry = await self._bus.job_store.read(key)
        except RecordUnreadable:
            await self._bus.job_store.delete(key, None)
            return DeletionCounts(jobs=1)
        if entry is None:
            return DeletionCounts()
        cancelled = entry.record.job.status not in FINAL_STATUSES
        try:
            if cancelled:
                entry = await self._services.job_service.cancel(key)
            if entry.record.job.status not in FINAL_STATUSES:
                return None
            await self._bus.job_store.delete(key, entry.revision)
        except RevisionConflict:
            return None
        except ProblemError as refused:
            if refused.code not in {"job_final", "not_found"}:
                raise
            return None  # somebody was faster: the next look goes by what is there then
        return DeletionCounts(jobs=1, cancelled=int(cancelled))

    async def _delete_messages(self, owner: str) -> DeletionCounts:
        """What was said about jobs that are gone: to followers, to webhooks, to the books, to runners."""
        bus = self._bus
        for pointer in await bus.job_queue.list_pending(owner):
            await bus.job_queue.remove(pointer)
        feed = await bus.feed.delete(owner)
        letters = await bus.webhook_outbox.remove(owner)
        rows = await bus.delivery_log.keys(f"{owner}.>")
        for name in rows:
            await bus.delivery_log.delete(name)
        await bus.webhook_configs.delete(owner)
        return DeletionCounts(
            feed=feed, deliveries=max(letters, len(rows)), usage_rows=await bus.usage_log.delete_owner(owner)
        )

    async def _drop_asset(self, owner: str, name: str) -> tuple[int, tuple[str, ...]]:
        """Bytes of the file, and the hosts that may have it."""
        try:
            row = await self._bus.asset_references.get(name)
        except RowUnreadable:
            row = None
        deleted = await self._services.assets.drop_reference(owner, name.partition(".")[2])
        return row.value.bytes if row else 0, deleted.hosts_pending

    async def _update_state(self, owner: str, found: DeletionCounts) -> None:
        """Whether that was all."""
        row = await self._bus.owner_deletions.get(owner)
        now = self._clock()
        if row is None or not found.is_empty:
            await self._update(owner, state=OwnerDeletionState.RUNNING, empty_since=None)
        elif row.value.empty_since is None:
            await self._update(owner, state=OwnerDeletionState.VERIFYING, empty_since=now)
        elif now - row.value.empty_since >= self._quiet_period:
            await self._services.assets.sweep_trash()  # the bytes are out of the trash, too, when it is called done
            await self._update(owner, state=OwnerDeletionState.DONE, finished_at=now)
            self._services.quotas.deleting_owners -= {owner}

    async def _record_progress(
        self, owner: str, gone: DeletionCounts, *, waiting_for: int | None = None, hosts: set[str] | None = None
    ) -> DeletionCounts:
        """Add to the report; `gone` again."""
        row = await self._bus.owner_deletions.get(owner)
        if row is None:
            return gone
        named = tuple(sorted({*row.value.hosts_pending, *(hosts or ())}))
        waits = row.value.waiting_for if waiting_for is None else waiting_for
        if not gone.is_empty or (named, waits) != (row.value.hosts_pending, row.value.waiting_for):
            await self._update(owner, gone, hosts_pending=named, waiting_for=waits)
        return gone

    async def _update(self, owner: str, gone: DeletionCounts = DeletionCounts(), **fields: object) -> None:  # noqa: B008 - frozen
        for _ in range(_CONFLICT_RETRIES_LIMIT):
            row = await self._bus.owner_deletions.get(owner)
            if row is None:
                return
            told = structs.replace(row.value, counts=row.value.counts + gone, **fields)
            if told == row.value:
                return
            try:
                await self._bus.owner_deletions.update(owner, told, row.revision)
            except RevisionConflict:
                continue
            return
        raise RevisionConflict(f"the deletion of {owner} changed {_CONFLICT_RETRIES_LIMIT} times meanwhile")
