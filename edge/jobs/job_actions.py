"""Cancel, retry or delete many jobs in one request, with a durable report.

A row of ACTIONS is the request and its progress. The edge that holds the lease works on it page by page: it stores the
ids of a page, changes these jobs, and stores the counts. A crash repeats at most one page, and every step may be
repeated: a job that the action has changed already counts as done.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import structlog
from anyio import move_on_after
from msgspec import structs, to_builtins

from bus.compare_and_set import update_row
from bus.interface import BusError, Table
from bus.notifier import Notifier
from edge.core.clock import Clock, Entropy
from edge.core.concurrency import gather_bounded, translate_errors
from edge.core.installation import Leases
from edge.index.index import JobIndex
from edge.index.rows import JobFilters
from edge.jobs.service import JobService
from edge.store.port import StoreError
from schemas.installation import (
    ACTION_JOBS_LIMIT,
    FAILURES_LIMIT,
    JobAction,
    JobActionCounts,
    JobActionFailure,
    JobActionFilter,
    JobActionKind,
    JobActionState,
)
from schemas.job import FINAL_STATUSES, JobKey, Status, make_uuid7
from schemas.problems import ProblemError

SWEEP_INTERVAL_S = 2.0  # the time after which another edge takes an action over
PAGE_JOBS = 50
_CONCURRENT_JOBS_LIMIT = 8
_LEASE_SCOPE = "actions"
_TRANSIENT_CODES = frozenset({"rate_limited", "unavailable", "store_full"})

_log = structlog.get_logger()


class _Outcome(NamedTuple):
    """The outcome for one job: its `counts`, or the transient `problem` that stops the action for now."""

    counts: JobActionCounts
    failure: JobActionFailure | None = None
    problem: ProblemError | None = None


_DONE, _SKIPPED = _Outcome(JobActionCounts(done=1)), _Outcome(JobActionCounts(skipped=1))


class JobActionService:
    """Starts actions, reports them, and works on those that no other edge works on."""

    def __init__(  # noqa: PLR0913, PLR0917 - its dependencies
        self,
        table: Table[JobAction],
        jobs: JobService,
        index: JobIndex,
        leases: Leases,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._table = table
        self._jobs = jobs
        self._index = index
        self._leases = leases
        self._clock = clock
        self._entropy = entropy
        self._requests = Notifier()

    async def start(
        self,
        owner: str,
        kind: JobActionKind,
        by: str,
        *,
        ids: Sequence[str] = (),
        jobs_filter: JobActionFilter | None = None,
    ) -> JobAction:
        """Store an action on `ids`, or on the jobs that match `jobs_filter` now. Raises ProblemError."""
        if bool(ids) == (jobs_filter is not None):
            raise ProblemError("input_invalid", "name the jobs of the action: send either `ids` or `filter`")
        if len(ids) > ACTION_JOBS_LIMIT:
            raise ProblemError("input_invalid", f"{len(ids)} ids are too many: send at most {ACTION_JOBS_LIMIT}")
        now = self._clock()
        action = JobAction(
            id=make_uuid7(int(now.timestamp() * 1000), self._entropy(10)),
            owner=owner,
            kind=kind,
            requested_by=by,
            requested_at=now,
            ids=tuple(dict.fromkeys(ids)),
            filter=jobs_filter,
            conditions=() if jobs_filter is None else tuple(to_builtins(jobs_filter)),
        )
        total = len(action.ids)
        if jobs_filter is not None:
            total = await self._index.count_filtered_jobs(owner, _to_list_filters(action, jobs_filter))
        action = structs.replace(action, total=total)
        with translate_errors():
            await self._table.create(action.key, action)
        self._requests.notify()
        return action

    async def read(self, owner: str, action_id: str) -> JobAction:
        """Return an action. Raises ProblemError `not_found` if it never existed or is older than 30 days."""
        with translate_errors():
            row = await self._table.get(f"{owner}.{action_id}")
        if row is None:
            raise ProblemError("not_found", f"there is no action {action_id[:80]}: POST /v1/jobs/actions starts one")
        return row.value

    async def list(self, owner: str) -> list[JobAction]:
        """Return the actions of the owner, newest first."""
        with translate_errors():
            rows = await self._table.rows(f"{owner}.")
        return sorted((row.value for row in rows.values()), key=lambda action: action.id, reverse=True)

    async def run(self) -> None:
        """Work on actions until cancelled. The first sweep waits until the index has caught up."""
        await self._index.wait_until_caught_up()
        while True:
            requested = self._requests.next_notification()
            try:
                await self.sweep()
            except (BusError, ProblemError, StoreError) as error:
                _log.warning("job_action_delayed", error=str(error))
            with move_on_after(SWEEP_INTERVAL_S):
                await requested.wait()

    async def sweep(self) -> None:
        """Work on each unfinished action until it is done or must wait. Raises BusError, ProblemError, StoreError."""
        for key, row in sorted((await self._table.rows()).items()):
            if row.value.state is JobActionState.RUNNING and row.value.is_known:
                async with self._leases.acquire(_LEASE_SCOPE, key) as is_leased:
                    if is_leased:
                        await self._work_on(key)

    async def _work_on(self, key: str) -> None:
        while True:
            row = await self._table.get(key)
            if row is None or row.value.state is not JobActionState.RUNNING:
                return
            action = row.value
            if not action.page:
                await self._update(action, **await self._next_page(action))
                continue
            outcomes = await gather_bounded(
                [partial(self._apply, action, job_id) for job_id in action.page], _CONCURRENT_JOBS_LIMIT
            )
            problem = next((outcome.problem for outcome in outcomes if outcome.problem), None)
            if problem is not None:
                await self._update(action, waits_for=problem.detail)
                return
            await self._record_page(action, outcomes)

    async def _next_page(self, action: JobAction) -> dict[str, object]:
        """Return the fields with the next page, or those of a finished action."""
        if action.is_last_page:
            return {"state": JobActionState.DONE, "finished_at": self._clock()}
        if action.filter is None:
            start = action.ids.index(action.position) + 1 if action.position else 0
            page = action.ids[start : start + PAGE_JOBS]
            return {"page": page, "position": page[-1], "is_last_page": start + PAGE_JOBS >= len(action.ids)}
        filters = _to_list_filters(action, action.filter)
        found = await self._index.list_jobs(action.owner, filters, PAGE_JOBS, action.position)
        page = tuple(entry.record.job.id for entry in found.records)
        return {"page": page, "position": found.next_cursor, "is_last_page": found.next_cursor is None}

    async def _record_page(self, action: JobAction, outcomes: Sequence[_Outcome]) -> None:
        failures = [outcome.failure for outcome in outcomes if outcome.failure is not None]
        await self._update(
            action,
            page=(),
            counts=sum((outcome.counts for outcome in outcomes), action.counts),
            failures=(*action.failures, *failures)[:FAILURES_LIMIT],
            waits_for=None,
        )

    async def _update(self, action: JobAction, **changes: object) -> None:
        """Set fields, unless another edge has changed or deleted the row since it was read."""

        def change(current: JobAction | None) -> JobAction | None:
            return structs.replace(current, **changes) if current == action else None

        await update_row(self._table, action.key, change)

    async def _apply(self, action: JobAction, job_id: str) -> _Outcome:
        key = JobKey(action.owner, job_id)
        try:
            if action.kind is JobActionKind.CANCEL:
                return await self._cancel(key)
            if action.kind is JobActionKind.DELETE:
                return await self._delete(key)
            return await self._retry(action, key)
        except ProblemError as problem:
            if problem.code in _TRANSIENT_CODES:
                return _Outcome(JobActionCounts(), problem=problem)
            return _Outcome(JobActionCounts(failed=1), JobActionFailure(job_id, problem.code, problem.detail))

    async def _cancel(self, key: JobKey) -> _Outcome:
        status = (await self._jobs.cancel_unfinished(key)).record.job.status
        return _SKIPPED if status in FINAL_STATUSES - {Status.CANCELLED} else _DONE

    async def _delete(self, key: JobKey) -> _Outcome:
        try:
            await self._jobs.delete(key)
        except ProblemError as problem:
            if problem.code != "not_found":
                raise
        return _DONE

    async def _retry(self, action: JobAction, key: JobKey) -> _Outcome:
        job = (await self._jobs.read(key)).record.job
        if job.retried_at is not None and job.retried_at >= action.requested_at:
            return _DONE
        if job.status is Status.SUCCEEDED:
            return _SKIPPED
        await self._jobs.retry(key)
        return _DONE


def _to_list_filters(action: JobAction, jobs_filter: JobActionFilter) -> JobFilters:
    """Return the filters for the index. Jobs that were created after the request do not belong to the action."""
    until = jobs_filter.created_to
    return JobFilters(
        statuses=jobs_filter.status,
        endpoint=jobs_filter.endpoint,
        priority=jobs_filter.priority,
        tags=tuple(jobs_filter.tags.items()),
        code=jobs_filter.code,
        text=jobs_filter.text,
        created_from=jobs_filter.created_from,
        created_to=action.requested_at if until is None else min(until, action.requested_at),
    )
