"""The owners of an installation: what each of them has, and the deletion of an owner with all data.

A deletion is repeated until nothing is found any more. A row of ERASURES records the request and the progress. The
edge that holds the lease does the work, so that it continues after a crash. Meanwhile no edge accepts anything of the
owner. Other edges learn this seconds later, so the deletion is done only after nothing was found for a while. Every
step counts what it deleted and may stop anywhere.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import timedelta
from functools import partial
from itertools import islice

import structlog
from anyio import move_on_after
from msgspec import Struct, structs

from bus.compare_and_set import update_row
from bus.interface import Bus, BusError, RevisionConflict, RowUnreadable
from bus.notifier import Notifier
from edge.assets.service import TRASH_RETENTION, AssetService
from edge.assets.uploads import UploadService
from edge.core.clock import Clock
from edge.core.concurrency import gather_bounded, translate_errors
from edge.core.installation import Leases
from edge.index.index import JobIndex
from edge.jobs.service import JobService
from edge.owners.api_keys import ApiKeyStore
from edge.owners.quotas import OwnerQuotas
from edge.owners.secrets import SecretStore, secret_prefix
from edge.store.port import StoreError
from schemas.credentials import Scope
from schemas.events import RecordUnreadable
from schemas.installation import DeletedOwner, DeletionCounts, OwnerDeletion, OwnerDeletionState
from schemas.job import FINAL_STATUSES, JobKey, Status
from schemas.problems import ProblemError

_RETRY_AFTER_S = 10

_log = structlog.get_logger()


class OwnerSummary(Struct, frozen=True, kw_only=True):
    """An owner. `unfinished`: jobs that have not ended. `deletion`: the last one that was requested."""

    owner: str
    jobs: int
    unfinished: int
    assets: int
    keys: int
    deletion: OwnerDeletion | None = None


class OwnerHoldings(Struct, frozen=True, kw_only=True):
    """All that a deletion of the owner deletes. `bytes`: of the assets. `deliveries`: of webhooks, in their log."""

    owner: str
    jobs: int
    unfinished: int
    assets: int
    bytes: int
    keys: int
    deliveries: int
    secrets: int


class OwnerDirectory:
    """Counts what owners have. A host has a key, but is not an owner."""

    def __init__(self, bus: Bus, index: JobIndex, keys: ApiKeyStore) -> None:
        self._bus = bus
        self._index = index
        self._keys = keys

    async def list(self) -> Sequence[OwnerSummary]:
        """Return every owner with keys, jobs, assets or a deletion, by name. Raises ProblemError."""
        jobs, unfinished = self._count_jobs()
        with translate_errors():
            stored_keys = await self._keys.list()
            assets = Counter(name.partition(".")[0] for name in await self._bus.asset_references.keys())
            deletions = {owner: row.value for owner, row in (await self._bus.owner_deletions.rows()).items()}
        keys = Counter(key.owner for key in stored_keys)
        hosts = {key.owner for key in stored_keys if Scope.RUNNER in key.scopes}
        return [
            OwnerSummary(
                owner=owner,
                jobs=jobs[owner],
                unfinished=unfinished[owner],
                assets=assets[owner],
                keys=keys[owner],
                deletion=deletions.get(owner),
            )
            for owner in sorted({*jobs, *assets, *keys, *deletions} - hosts)
        ]

    async def count(self, owner: str) -> OwnerHoldings:
        """Return what the owner has; zeros for an unknown one. Raises ProblemError."""
        jobs, unfinished = self._count_jobs()
        with translate_errors():
            assets = [row.value.bytes for row in (await self._bus.asset_references.rows(f"{owner}.")).values()]
            return OwnerHoldings(
                owner=owner,
                jobs=jobs[owner],
                unfinished=unfinished[owner],
                assets=len(assets),
                bytes=sum(assets),
                keys=len(await self._keys.list(owner)),
                deliveries=len(await self._bus.delivery_log.keys(f"{owner}.>")),
                secrets=len(await self._bus.secrets.keys(f"{secret_prefix(owner)}>")),
            )

    def _count_jobs(self) -> tuple[Counter[str], Counter[str]]:
        """Return the jobs of each owner, all and those that have not ended. Raises ProblemError `unavailable`."""
        if not self._index.is_caught_up:
            raise ProblemError(
                "unavailable", "the edge is still reading its jobs: try again", retry_after_s=_RETRY_AFTER_S
            )
        jobs, unfinished = Counter[str](), Counter[str]()
        for key, count in self._index.count_jobs().items():
            jobs[key.owner] += count
            if key.status not in FINAL_STATUSES:
                unfinished[key.owner] += count
        return +jobs, unfinished


DELETED_OWNER_RETENTION = timedelta(days=400)  # as AUDIT; a host that was off for longer removes by age
SWEEP_INTERVAL_S = 2.0  # the time after which every other edge refuses the owner
QUIET_PERIOD = timedelta(seconds=10)  # another edge caches a key for 5 s, and its requests may take as long
_LEASE_SCOPE = "erasures"  # the stored scope of its leases
_CONCURRENT_JOBS_LIMIT = 8
_PROGRESS_BATCH_JOBS = 200  # jobs between two updates of the progress


class DeletionServices(Struct, frozen=True, kw_only=True):
    """The services that hold data of an owner."""

    bus: Bus
    job_service: JobService
    assets: AssetService
    uploads: UploadService
    keys: ApiKeyStore
    secrets: SecretStore
    index: JobIndex
    quotas: OwnerQuotas


class OwnerDeletionService:
    """Deletes owners. `trash_retention`: how long deleted bytes stay in the trash of the asset store."""

    def __init__(
        self, services: DeletionServices, leases: Leases, clock: Clock, trash_retention: timedelta = TRASH_RETENTION
    ) -> None:
        self._services = services
        self._bus = services.bus
        self._leases = leases
        self._clock = clock
        self._quiet_period = trash_retention + QUIET_PERIOD
        self._requests = Notifier()

    async def start(self, owner: str, by: str = "") -> OwnerDeletion:
        """Request the deletion of an owner, and return its state.

        A repeated call returns the same deletion, or starts a new one if the owner has new data since it was done.
        Raises ProblemError `conflict` for an owner that is a host.
        """
        with translate_errors():
            keys = await self._services.keys.list(owner)
            if any(Scope.RUNNER in key.scopes for key in keys):
                raise ProblemError(
                    "conflict", f"{owner} has the key of a host: first remove that host, or revoke the key"
                )
            row = await self._bus.owner_deletions.get(owner)
            if row is not None and (row.value.state is not OwnerDeletionState.DONE or not await self._has_data(owner)):
                return row.value
            deletion = OwnerDeletion(owner=owner, requested_at=self._clock(), requested_by=by)
            try:
                await self._bus.owner_deletions.update(owner, deletion, row.revision if row else 0)
            except RevisionConflict:
                return await self.start(owner, by)
            await self._forget_old_rows()
        self._services.quotas.mark_deleting(owner)
        self._requests.notify()
        return deletion

    async def _forget_old_rows(self) -> None:
        """Remove rows of DELETED_OWNERS that every host has read or will not need."""
        for owner, row in (await self._bus.deleted_owners.rows()).items():
            if self._clock() - row.value.at > DELETED_OWNER_RETENTION:
                await self._bus.deleted_owners.delete(owner)

    async def report(self, owner: str) -> OwnerDeletion:
        """Return the state of a deletion. Raises ProblemError `not_found`, also a month after it was requested."""
        with translate_errors():
            row = await self._bus.owner_deletions.get(owner)
        if row is None:
            raise ProblemError(
                "not_found", f"no deletion of {owner} was requested: DELETE /v1/owners/{owner} starts one"
            )
        return row.value

    async def _has_data(self, owner: str) -> bool:
        jobs = {count.owner for count in self._services.index.count_jobs()}
        return owner in jobs or bool(
            await self._bus.asset_references.keys(f"{owner}.>") or await self._services.keys.list(owner)
        )

    async def run(self) -> None:
        """Work on requested deletions until cancelled. The first sweep waits until the index has caught up."""
        await self._services.index.wait_until_caught_up()
        while True:
            requested = self._requests.next_notification()
            try:
                await self.sweep()
            except (BusError, ProblemError, StoreError) as error:
                _log.warning("owner_deletion_delayed", error=str(error))
            with move_on_after(SWEEP_INTERVAL_S):
                await requested.wait()

    async def sweep(self) -> None:
        """Make one pass over each requested deletion. Raises BusError, ProblemError, StoreError."""
        rows = await self._bus.owner_deletions.rows()
        wanted = {owner for owner, row in rows.items() if row.value.state is not OwnerDeletionState.DONE}
        self._services.quotas.set_deleting(wanted)
        for owner in sorted(wanted):
            # Every edge has its own folder of uploads.
            await self._record_progress(owner, DeletionCounts(uploads=await self._services.uploads.remove_all(owner)))
            async with self._leases.acquire(_LEASE_SCOPE, owner) as is_leased:
                if is_leased:
                    await self._delete_owner_data(owner)

    async def _delete_owner_data(self, owner: str) -> None:
        found = await self._record_progress(owner, DeletionCounts(keys=await self._revoke_keys(owner)))
        jobs = iter(sorted(key for key in await self._bus.job_store.keys() if key.owner == owner))
        unfinished = 0
        while batch := list(islice(jobs, _PROGRESS_BATCH_JOBS)):
            deleted, left = await self._delete_jobs(batch)
            unfinished += left
            found += await self._record_progress(owner, deleted, waiting_for=unfinished)
        if unfinished:
            return
        found += await self._record_progress(owner, await self._delete_messages(owner), waiting_for=0)
        await self._tell_hosts(owner, had_jobs=found.jobs > 0)
        if any(count.owner == owner for count in self._services.index.count_jobs()):
            return  # the index is behind: it would still find jobs that name the assets
        dropped = [await self._drop_asset(owner, name) for name in await self._bus.asset_references.keys(f"{owner}.>")]
        deleted = DeletionCounts(assets=len(dropped), bytes=sum(size for size, _ in dropped))
        found += await self._record_progress(owner, deleted, hosts={host for _, hosts in dropped for host in hosts})
        await self._update_state(owner, found)

    async def _tell_hosts(self, owner: str, *, had_jobs: bool) -> None:
        """Let hosts remove the owner's caches; again if they may have made new ones since they were told."""
        deletion, told = await self._bus.owner_deletions.get(owner), await self._bus.deleted_owners.get(owner)
        is_new = deletion is not None and (told is None or told.value.at < deletion.value.requested_at)
        if is_new or had_jobs:
            await self._bus.deleted_owners.put(owner, DeletedOwner(self._clock()))
            hosts = await self._bus.capabilities.rows()
            holding = [name for name, row in hosts.items() if any(one.caches for one in row.value.endpoints)]
            await self._record_progress(owner, DeletionCounts(), hosts=holding)

    async def _revoke_keys(self, owner: str) -> int:
        keys = await self._services.keys.list(owner)
        for key in keys:
            await self._services.keys.revoke(key.id)
        return len(keys)

    async def _delete_jobs(self, keys: Sequence[JobKey]) -> tuple[DeletionCounts, int]:
        """Cancel and delete jobs; return what was deleted, and how many jobs have not ended yet."""
        results = await gather_bounded([partial(self._try_delete_job, key) for key in keys], _CONCURRENT_JOBS_LIMIT)
        errors = [result for result in results if isinstance(result, Exception)]
        if errors:
            raise errors[0]
        deleted = [result for result in results if isinstance(result, DeletionCounts)]
        return sum(deleted, DeletionCounts()), len(results) - len(deleted)

    async def _try_delete_job(self, key: JobKey) -> DeletionCounts | BusError | ProblemError | None:
        """Delete a job as `_delete_job` does; return its error, so that the other jobs are deleted as well."""
        try:
            return await self._delete_job(key)
        except (BusError, ProblemError) as error:
            return error

    async def _delete_job(self, key: JobKey) -> DeletionCounts | None:
        """Cancel and delete a job; return None if it has not ended yet."""
        try:
            entry = await self._bus.job_store.read(key)
        except RecordUnreadable:
            await self._bus.job_store.delete(key, None)
            return DeletionCounts(jobs=1)
        if entry is None:
            return DeletionCounts()
        was_final = entry.record.job.status in FINAL_STATUSES
        try:
            if not was_final:
                entry = await self._services.job_service.cancel_unfinished(key)
            if entry.record.job.status not in FINAL_STATUSES:
                return None
            await self._bus.job_store.delete(key, entry.revision)
        except RevisionConflict:
            return None
        except ProblemError as problem:
            if problem.code != "not_found":
                raise
            return None  # another pass deleted the job
        is_cancelled = not was_final and entry.record.job.status is Status.CANCELLED  # it may also have ended by itself
        return DeletionCounts(jobs=1, cancelled=int(is_cancelled))

    async def _delete_messages(self, owner: str) -> DeletionCounts:
        """Delete queue and feed messages, webhook deliveries, actions, secrets and usage rows of the owner."""
        bus = self._bus
        for pointer in await bus.job_queue.list_pending(owner):
            await bus.job_queue.remove(pointer)
        feed = await bus.feed.delete(owner)
        deliveries = await bus.webhook_outbox.remove(owner)
        for name in await bus.notices.keys(f"job.{owner}.>"):
            await bus.notices.delete(name)
        rows = await bus.delivery_log.keys(f"{owner}.>")
        for name in rows:
            await bus.delivery_log.delete(name)
        for name in await bus.job_actions.keys(f"{owner}.>"):
            await bus.job_actions.delete(name)
        await bus.owner_webhooks.delete(owner)
        await bus.webhook_configs.delete(owner)
        return DeletionCounts(
            feed=feed,
            deliveries=max(deliveries, len(rows)),
            secrets=await self._services.secrets.delete_owner(owner),
            usage_rows=await bus.usage_log.delete_owner(owner),
        )

    async def _drop_asset(self, owner: str, name: str) -> tuple[int, tuple[str, ...]]:
        """Drop an asset; return its size in bytes, and the hosts that may have it in their caches."""
        try:
            row = await self._bus.asset_references.get(name)
        except RowUnreadable:
            row = None
        deletion = await self._services.assets.drop_reference(owner, name.partition(".")[2])
        return row.value.bytes if row else 0, deletion.hosts_pending

    async def _update_state(self, owner: str, found: DeletionCounts) -> None:
        """Write the next state of the deletion; DONE after nothing was found for the quiet period."""
        row = await self._bus.owner_deletions.get(owner)
        now = self._clock()
        if row is None or not found.is_empty:
            await self._update(owner, state=OwnerDeletionState.RUNNING, empty_since=None)
        elif row.value.empty_since is None:
            await self._update(owner, state=OwnerDeletionState.VERIFYING, empty_since=now)
        elif now - row.value.empty_since >= self._quiet_period:
            await self._services.assets.sweep_trash()  # DONE also means that the bytes have left the trash
            await self._update(owner, state=OwnerDeletionState.DONE, finished_at=now)
            self._services.quotas.unmark_deleting(owner)

    async def _record_progress(
        self, owner: str, deleted: DeletionCounts, *, waiting_for: int | None = None, hosts: Collection[str] = ()
    ) -> DeletionCounts:
        """Add `deleted` to the report, and return it."""

        def add(deletion: OwnerDeletion | None) -> OwnerDeletion | None:
            return deletion and structs.replace(
                deletion,
                counts=deletion.counts + deleted,
                hosts_pending=tuple(sorted({*deletion.hosts_pending, *hosts})),
                waiting_for=deletion.waiting_for if waiting_for is None else waiting_for,
            )

        await update_row(self._bus.owner_deletions, owner, add)
        return deleted

    async def _update(self, owner: str, **changes: object) -> None:
        """Set fields of the deletion, by their names in `OwnerDeletion`."""

        def change(deletion: OwnerDeletion | None) -> OwnerDeletion | None:
            return deletion and structs.replace(deletion, **changes)

        await update_row(self._bus.owner_deletions, owner, change)
