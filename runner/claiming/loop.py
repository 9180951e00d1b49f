"""The claim loop: fetch what can start here now, highest priority first, and never more than there are free slots.

`decide` (pure) chooses the step for a message by the record of its job, because messages are not fenced and may come
again. `ClaimLoop` fetches the messages and takes the steps.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import NamedTuple

import anyio
import anyio.to_thread
from msgspec import Struct

from bus.interface import (
    WAKE_GRACE_S,
    BusError,
    Lane,
    QueueMessage,
    RevisionConflict,
    RowUnreadable,
    VersionedRecord,
)
from runner.claiming.recovery import ContainerRecovery, StepOutcome, host_lost_event
from runner.claiming.schedulability import Schedulability
from runner.claiming.warm_pool import WarmPool
from runner.context import HostContext, RunnerContext, run_in_background
from runner.endpoints import group_by_pool
from runner.execution.container_run import JobAssignment
from runner.execution.durable_state import record_event, start_delay_s
from runner.execution.execution import ExecutionRegistry, RoundKey
from runner.execution.job_files import PEEK_NAK_DELAY_S, job_timeouts, peek_job, prefetch_inputs
from runner.gpu.placement import Placed, ShareTurns
from schemas.backoff import Backoff
from schemas.events import RecordUnreadable, Started
from schemas.host import HOST_GONE_TIMEOUT_S
from schemas.job import (
    FINAL_STATUSES,
    PRIORITIES,
    Job,
    Pointer,
    Priority,
    Status,
    WaitReason,
)

UNSCHEDULABLE_NAK_DELAY_S = 5.0  # an endpoint of a shared pool that cannot start here: let another host try
HELD_ELSEWHERE_NAK_DELAY_S = 30.0  # another host runs the job
UNSETTLED_NAK_DELAY_S = 2.0  # the record is missing or older than the message: the edge's reconciler decides
LOST_RACE_DELAY_S = 0.001  # maximum pause per consecutive lost race
LOST_RACE_LIMIT = 20
FIRST_IDLE_WAIT_S = 2 * PEEK_NAK_DELAY_S  # a message at which a busy host looked is visible again by then
TURN_PRIORITIES = (Priority.HIGH, Priority.NORMAL)  # `low` waits for as long as others can start
LANES_AT_ONCE = 3  # fetched ahead together, if all but the last one were empty before
HOLD_LIMIT_S = 1.0  # how long a fetched message waits for a slot that is about to be free, on this host alone
CLEARING_NAK_DELAY_S = 1.0  # the container of the previous attempt or round is being removed

# Reasons that end when another job ends. BEHIND: every share of the GPU is in use, or it is kept for another endpoint.
GPU_BUSY_REASONS = frozenset({WaitReason.BEHIND, WaitReason.GPU_SHARE_SHORT, WaitReason.VRAM_SHORT})


class Ack(Struct, frozen=True):
    """The round is over: acknowledge."""


class Nak(Struct, frozen=True):
    """Not now: deliver the message again in `delay_s`."""

    delay_s: float


class Start(Struct, frozen=True):
    """The job is queued and may start now."""

    entry: VersionedRecord


class AdoptOwn(Struct, frozen=True):
    """The job runs by a claim of this host, from this runner process or an earlier one: adopt it."""

    entry: VersionedRecord


class HeldElsewhere(Struct, frozen=True):
    """The job runs by the claim of another host, which may be gone."""

    entry: VersionedRecord


ClaimDecision = Ack | Nak | Start | AdoptOwn | HeldElsewhere


def _decide_queued(entry: VersionedRecord, _: str, now: datetime) -> ClaimDecision:
    left_s = start_delay_s(entry.record.job, now)
    return Nak(left_s) if left_s else Start(entry)


def _decide_running(entry: VersionedRecord, host: str, _: datetime) -> ClaimDecision:
    claim = entry.record.job.claim
    return AdoptOwn(entry) if claim is not None and claim.host == host else HeldElsewhere(entry)


DECISION_BY_STATUS: dict[Status, Callable[[VersionedRecord, str, datetime], ClaimDecision]] = {
    Status.SCHEDULED: lambda _entry, _host, _now: Nak(UNSETTLED_NAK_DELAY_S),
    Status.QUEUED: _decide_queued,
    Status.RUNNING: _decide_running,
    Status.CANCELLING: _decide_running,
    **{status: lambda _entry, _host, _now: Ack() for status in FINAL_STATUSES},
}


def decide(pointer: Pointer, entry: VersionedRecord | None, host: str, now: datetime) -> ClaimDecision:
    """Return the step for `pointer` on `host`. `entry` is the job's record; None if it does not exist."""
    if entry is None:
        return Nak(UNSETTLED_NAK_DELAY_S)
    job: Job = entry.record.job
    if pointer.round != job.round:
        return Ack() if pointer.round < job.round else Nak(UNSETTLED_NAK_DELAY_S)
    return DECISION_BY_STATUS[job.status](entry, host, now)


class FetchedMessage(NamedTuple):
    """A message for which there is a slot, and the record of its job, if that was read ahead."""

    message: QueueMessage
    entry: VersionedRecord | None


class ClaimLoop:
    """Claims for one runner process the jobs that can start here."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts that a claim passes through
        self,
        context: RunnerContext,
        host: HostContext,
        schedulability: Schedulability,
        warm_pool: WarmPool,
        executions: ExecutionRegistry,
        recovery: ContainerRecovery,
    ) -> None:
        self._context = context
        self._host = host
        self._schedulability = schedulability
        self._executions = executions
        self._recovery = recovery
        self._warm_pool = warm_pool
        self._rotation = 0
        self._empty_lanes: set[Lane] = set()  # at their last fetch ahead
        self._woken_lanes: frozenset[Lane] = frozenset()
        self._all_due_at = 0.0  # when all lanes are fetched again although others are woken
        self._lost_races = 0  # wakes in a row whose message another host took
        self._empty_sweeps = 0  # consecutive sweeps that found nothing
        self._idle_scope = anyio.CancelScope()
        self._claiming = True
        self.jobs_started = 0  # since the start of this process
        self.is_handling = False  # a message is being answered, or its job is being claimed
        self._turns = ShareTurns(host.gpu_allocator.settings.placement.turn_after_s, UNSCHEDULABLE_NAK_DELAY_S)

    async def run(self) -> None:
        """Claim until `stop`. While the edge, the broker or the engine is away, nothing new is claimed."""
        while self._claiming:
            found = await self._wait_for_message()
            if found is not None:
                self.is_handling = True
                await self._context.retry_while_unavailable("claim", partial(self._handle, *found))
                self.is_handling = False

    async def _wait_for_message(self) -> FetchedMessage | None:
        """Return the next message, once there is a slot for its job; None after the idle wait, or after `stop`."""
        message, entry = None, None
        with anyio.CancelScope() as self._idle_scope:
            await self._context.outage.wait_until_over()
            if announced := await self._wait_for_slot():
                message = await self._fetch_ahead(announced)
                with anyio.move_on_after(HOLD_LIMIT_S):
                    entry = await self._read_queued(message) if message else None
                    await self._host.slots.wait_until_free()
            else:
                message = await self._fetch_next()
        if message is None:
            return None
        if self._claiming and self._host.slots.free > 0:
            return FetchedMessage(message, entry)
        # Stopped while the message came, or the slot is not free yet. Without an answer, no runner would see the
        # message for half a minute.
        await self._context.retry_while_unavailable("return_message", partial(message.nak, PEEK_NAK_DELAY_S))
        return None

    async def _wait_for_slot(self) -> frozenset[str]:
        """Wait for a slot, and prefetch the next job's inputs. What is missing then is fetched with the job.

        If no slot is free yet, but one will be in a moment, return the pools of the jobs that are ending.
        """
        if self._host.slots.free > 0:
            return frozenset()
        async with run_in_background(self._prefetch):
            return await self._host.slots.wait_until_announced()

    async def _fetch_ahead(self, announced: frozenset[str]) -> QueueMessage | None:
        """Fetch the next message while the end of the last job is recorded. It is claimed when the slot is free.

        The GPUs of that job are still in use, so in its pool an endpoint that lacks only GPUs counts as one that can
        start. While GPUs are kept for an endpoint whose turn it is, nothing is fetched ahead.
        """
        if self._turns.kept_for is not None:
            return None
        try:
            reasons = await self._schedulability.unschedulable_reasons()
            busy = [name for name, reason in reasons.items() if reason in GPU_BUSY_REASONS]
            awaited = [name for name in busy if self._host.endpoints[name].config.effective_pool in announced]
            return await self._fetch_together(self._order_lanes(self._startable_pools(reasons.keys() - awaited)))
        except BusError as error:
            self._context.log_unavailable("claim", error)
            return None

    async def _read_queued(self, message: QueueMessage) -> VersionedRecord | None:
        """Return the record of the job if it is queued. Otherwise None: `_handle` reads the record itself."""
        with suppress(BusError, RecordUnreadable):
            entry = await self._context.bus.job_store.read(message.pointer.key)
            return entry if entry is not None and entry.record.job.status is Status.QUEUED else None
        return None

    def _startable_pools(self, unschedulable: Collection[str]) -> list[str]:
        """Return the pools with an endpoint that is not `unschedulable`."""
        pools = group_by_pool(self._host.endpoints).items()
        return [name for name, found in pools if any(endpoint.name not in unschedulable for endpoint in found)]

    async def _prefetch(self) -> None:
        """Prefetch for the first job that waits and that could start here if GPUs were free.

        A message that is looked at is invisible to other hosts for a moment. So a busy host that is woken stands back
        until a host with a free slot has taken the message, and busy hosts do not all look at the same time.
        """
        ahead_s = self._context.intervals.ahead_s
        with suppress(BusError):
            await anyio.sleep(ahead_s)
            while True:
                reasons = await self._schedulability.unschedulable_reasons()
                blocked = {name for name, reason in reasons.items() if reason not in GPU_BUSY_REASONS}
                endpoints = {name: one for name, one in self._host.endpoints.items() if name not in blocked}
                pools = list(group_by_pool(endpoints))
                fetch = partial(self._fetch_first, self._order_lanes(pools))
                if await prefetch_inputs(self._context, endpoints, fetch):
                    return
                await self._wait_for_messages(pools, self._context.intervals.idle_s)
                await anyio.sleep(ahead_s * (0.5 + self._context.jitter()))

    def stop(self) -> None:
        """Claim nothing more. A message that was just fetched is returned."""
        self._claiming = False
        self._idle_scope.cancel()

    async def _fetch_next(self) -> QueueMessage | None:
        """Return one message, or None after the idle wait. A broker outage is waited out in the same way.

        After a wake only its lanes are fetched. Every other lane of a pool that could start was empty at the last fetch
        and had no wake since. But a message may be there without a wake: one that was returned with a delay, whose wake
        was lost, or whose pool could not start then. So all lanes are fetched once in each idle time, also while wakes
        keep coming that other hosts win. After a job they are fetched again sooner at first: a busy host may have been
        looking at the only message.
        """
        woken, self._woken_lanes = self._woken_lanes, frozenset()
        try:
            reasons = await self._schedulability.unschedulable_reasons()
            if await self._update_turns(reasons):
                reasons = await self._schedulability.unschedulable_reasons()
            pools = self._startable_pools(reasons)
            lanes = [lane for lane in _sort_by_priority(woken) if lane.pool in pools]
            message = await self._fetch_woken(lanes) if lanes else None
            if message is None and (not lanes or anyio.current_time() >= self._all_due_at):
                self._all_due_at = anyio.current_time() + self._context.intervals.idle_s
                message = await self._fetch_first(self._order_lanes(pools))
                self._empty_sweeps = 0 if message is not None else self._empty_sweeps + 1
            if message is None:
                self._woken_lanes = await self._wait_for_messages(pools, self._idle_wait_s())
        except BusError as error:
            self._context.log_unavailable("claim", error)
            await anyio.sleep(self._context.intervals.idle_s)
            return None
        return message

    def _idle_wait_s(self) -> float:
        return Backoff(FIRST_IDLE_WAIT_S, self._context.intervals.idle_s).delay_s(max(0, self._empty_sweeps - 1))

    async def _fetch_woken(self, lanes: list[Lane]) -> QueueMessage | None:
        """Fetch after a wake, which every idle host receives at the same moment. The host that won last goes first."""
        await anyio.sleep(self._context.jitter() * self._lost_races * LOST_RACE_DELAY_S)
        message = await self._fetch_first(lanes, WAKE_GRACE_S)
        if message is None:
            self._lost_races = min(self._lost_races + 1, LOST_RACE_LIMIT)
        else:
            self._lost_races = self._empty_sweeps = 0
        return message

    async def _update_turns(self, reasons: Mapping[str, WaitReason]) -> bool:
        """Keep GPUs for the endpoint whose turn it is now; return whether it is the turn of another one than before."""
        now, kept_before = anyio.current_time(), self._turns.kept_for
        endpoints = self._host.endpoints
        gpus_needed = {name: endpoint.config.resources.gpus for name, endpoint in endpoints.items()}
        self._turns.note_refused(reasons, gpus_needed, now)
        if (name := self._turns.name_to_check(now)) is not None:
            pool = endpoints[name].config.effective_pool
            job = await peek_job(
                self._context, partial(self._fetch_first, [Lane(pool, one) for one in TURN_PRIORITIES])
            )
            self._turns.note_looked(name, job.endpoint if job else None, now, is_shared=pool != name)
        self._turns.choose(now)
        kept = endpoints.get(self._turns.kept_for or "")
        self._host.gpu_allocator.keep_gpus(kept.config if kept else None)
        if self._turns.kept_for == kept_before:
            return False
        self._context.log.info("gpu_turn_changed", endpoint=self._turns.kept_for, was=kept_before)
        return True

    def _order_lanes(self, pools: list[str]) -> list[Lane]:
        """Return the lanes: high, normal, low. Within a priority, another pool comes first each time."""
        self._rotation += 1
        first = self._rotation % len(pools) if pools else 0
        return [Lane(pool, priority) for priority in PRIORITIES for pool in pools[first:] + pools[:first]]

    async def _fetch_first(self, lanes: Iterable[Lane], wait_s: float = 0.0) -> QueueMessage | None:
        for lane in lanes:
            message = await self._context.bus.job_queue.fetch(lane.pool, lane.priority, wait_s)
            if message is not None:
                return message
        return None

    async def _fetch_together(self, lanes: list[Lane]) -> QueueMessage | None:
        """Return the first message of these lanes. Raises BusError.

        Lanes that were empty last time are fetched together with the one after them, because round trips in a row delay
        the job. If several of them have a message, those after the first are given back to the queue.
        """
        while lanes:
            unknown = next((at for at, lane in enumerate(lanes) if lane not in self._empty_lanes), len(lanes))
            size = min(unknown + 1, LANES_AT_ONCE)
            found = await self._fetch_each(lanes[:size])
            for surplus in found[1:]:
                await self._context.retry_while_unavailable("return_message", partial(surplus.nak, PEEK_NAK_DELAY_S))
            if found:
                return found[0]
            lanes = lanes[size:]
        return None

    async def _fetch_each(self, lanes: list[Lane]) -> list[QueueMessage]:
        """Fetch once from each of the lanes at the same time; return the messages in their order."""
        found: dict[Lane, QueueMessage] = {}
        errors: list[BusError] = []

        async def fetch(lane: Lane) -> None:
            try:
                message = await self._context.bus.job_queue.fetch(lane.pool, lane.priority, 0.0)
            except BusError as error:
                errors.append(error)
                return
            if message is None:
                self._empty_lanes.add(lane)
            else:
                self._empty_lanes.discard(lane)
                found[lane] = message

        async with anyio.create_task_group() as tasks:
            for lane in lanes:
                tasks.start_soon(fetch, lane)
        if errors and not found:
            raise errors[0]
        return [found[lane] for lane in lanes if lane in found]

    async def _wait_for_messages(self, pools: list[str], timeout_s: float) -> frozenset[Lane]:
        if pools:
            return await self._context.bus.job_queue.wait_for_messages(pools, timeout_s)
        await anyio.sleep(timeout_s)
        return frozenset()

    async def _handle(self, message: QueueMessage, entry: VersionedRecord | None = None) -> None:
        """Answer the message, or start its job. Called again with the same message after an outage.

        `entry` is the record, if it was read ahead. If it has changed since, the claim fails and it is read again.
        """
        if await self._answer_for_execution(message):
            return
        outcome = await self._handle_by_record(message, entry)
        while outcome is StepOutcome.READ_AGAIN:
            outcome = await self._handle_by_record(message, None)

    async def _answer_for_execution(self, message: QueueMessage) -> bool:
        """Answer the message if an execution here has its job; return whether one has."""
        pointer = message.pointer
        execution = self._executions.active.get(RoundKey(pointer.key, pointer.round))
        if execution is None:
            if not self._executions.rounds(pointer.key):
                return False
            await message.nak(CLEARING_NAK_DELAY_S)
        elif execution.is_clearing:
            await message.nak(CLEARING_NAK_DELAY_S)
        elif execution.delivery is None or execution.delivery.sequence == message.sequence:
            execution.delivery = message
        else:
            await message.ack()
        return True

    async def _handle_by_record(self, message: QueueMessage, known: VersionedRecord | None) -> StepOutcome:
        """Read the record, unless it was read ahead, and carry out the step that `decide` returns for it."""
        try:
            current = known or await self._context.bus.job_store.read(message.pointer.key)
        except RecordUnreadable as error:
            self._context.log.warning("record_read_failed", job_id=message.pointer.id, error=str(error))
            await message.nak(UNSETTLED_NAK_DELAY_S)
            return StepOutcome.DONE
        try:
            match decide(message.pointer, current, self._context.host, self._context.now()):
                case Ack():
                    await message.ack()
                case Nak(delay_s):
                    await message.nak(delay_s)
                case Start(entry):
                    await self._claim_and_start(entry, message)
                case AdoptOwn(entry):
                    return await self._recovery.recover_job(entry, message)
                case HeldElsewhere(entry):
                    return await self._handle_held_elsewhere(entry, message)
        except RevisionConflict:  # another writer was first
            return StepOutcome.READ_AGAIN
        return StepOutcome.DONE

    async def _claim_and_start(self, entry: VersionedRecord, message: QueueMessage) -> None:
        """Claim the job, then launch it. No work is done before the claim is recorded."""
        job = entry.record.job
        endpoint = self._host.endpoints.get(job.endpoint)
        placed = None
        if endpoint is not None:
            limit_s = job_timeouts(job, endpoint.config).execution_s
            placed = await self._schedulability.place(endpoint, limit_s=limit_s)
        permit = self._host.slots.take()
        if endpoint is None or permit is None or not isinstance(placed, Placed):
            if permit is not None:
                permit.release()
            if job.priority in TURN_PRIORITIES:
                self._turns.note_waiting(job.endpoint, anyio.current_time())
            return await message.nak(UNSCHEDULABLE_NAK_DELAY_S)
        taken = self._warm_pool.take(endpoint, job.owner)
        warm = taken or self._warm_pool.start_reserved(endpoint, placed.uuids, job.owner)
        allocation = warm.allocation if warm else self._host.gpu_allocator.allocate(placed.uuids, endpoint.config)
        claim = self._context.claim(job.attempt + 1, allocation.uuids, self._schedulability.isolation_of(endpoint))
        try:
            await self._warm_pool.evict_for(allocation)
            written = await record_event(self._context, entry, Started(claim, endpoint.program))
        except BaseException:
            permit.release()
            await self._warm_pool.give_back(warm) if warm else allocation.release()
            raise
        self._turns.note_started(job.endpoint)
        claimed = written.record.job
        assignment = JobAssignment(claimed, endpoint, allocation, warm_container=warm, claimed=written)
        self._executions.launch(assignment, permit, message)
        self.jobs_started += 1
        if taken is not None:
            self._context.metrics.warm_hits.inc(job.endpoint)
        elif self._warm_pool.serves(endpoint):
            self._context.metrics.warm_misses.inc(job.endpoint)
        self._context.bind_log(job).info(
            "job_claimed", round=claimed.round, attempt=claimed.attempt, warm=warm is not None
        )
        return None

    async def _handle_held_elsewhere(self, entry: VersionedRecord, message: QueueMessage) -> StepOutcome:
        """Leave the job to the host that claimed it. If that host is gone, release the attempt: it may start here."""
        job = entry.record.job
        if not await self._is_claimant_gone(job):
            await message.nak(HELD_ELSEWHERE_NAK_DELAY_S)
            return StepOutcome.DONE
        await record_event(self._context, entry, host_lost_event(self._context, job))
        return StepOutcome.READ_AGAIN

    async def _is_claimant_gone(self, job: Job) -> bool:
        """Return whether the runner process that claimed `job` is gone.

        Returns False while it cannot tell: this runner has been connected for less than HOST_GONE_TIMEOUT_S, or the
        heartbeat is one of a later release. The heartbeat of a process that is gone expires.
        """
        if job.claim is None or self._context.bus.health.uptime_s() < HOST_GONE_TIMEOUT_S:
            return False
        try:
            row = await self._context.bus.heartbeats.get(job.claim.host)
        except RowUnreadable as error:
            self._context.log.warning("heartbeat_read_failed", claimed_by=job.claim.host, error=str(error))
            return False
        return row is None or row.value.incarnation != job.claim.incarnation


def _sort_by_priority(lanes: Iterable[Lane]) -> list[Lane]:
    return sorted(lanes, key=lambda lane: PRIORITIES.index(lane.priority))
