"""The claim loop: take what can start here now, highest priority first, and never more than there are slots for."""

from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import anyio

from bus.port import WOKEN_S, BusError, Conflict, Delivery, Lane, Unreadable
from runner.adopt import Adopter, released
from runner.ahead import GIVEN_BACK_S, fetch_ahead
from runner.attempt import Ticket
from runner.catalogue import by_pool
from runner.claims import UNSETTLED_S, Drop, Later, Ours, Start, Step, Theirs, judge
from runner.execution import Phase
from runner.fence import advance
from runner.gpu.placement import Placed
from runner.life import Life
from runner.means import Means
from runner.readiness import Readiness
from runner.roster import Place
from runner.standby import Standby
from schemas.events import RecordUnreadable, Started
from schemas.host import GONE_AFTER_S
from schemas.job import Job
from schemas.words import PRIORITIES

ELSEWHERE_S = 5.0  # an endpoint of a shared pool that cannot start here: let another host look
THEIRS_S = 30.0  # another host is at it
CLEARING_S = 1.0  # the container of the attempt or round before is being cleared away


class Agent:
    """Claims for one life, what `ready` says can start."""

    def __init__(self, life: Life, means: Means, ready: Readiness, standby: Standby, adopter: Adopter) -> None:
        self._life = life
        self._means = means
        self._ready = ready
        self._roster = adopter.roster
        self._adopter = adopter
        self._standby = standby
        self._pools = by_pool(means.kinds)
        self._turn = 0
        self._woken: frozenset[Lane] = frozenset()
        self._idle = anyio.CancelScope()
        self._claiming = True

    async def run(self) -> None:
        """Claim until `stop`. While the edge, the broker or the engine is away, nothing new is claimed."""
        while self._claiming:
            with anyio.CancelScope() as self._idle:
                await self._life.outage.over()
                await self._until_free()
                delivery = await self._next()
            if self._idle.cancelled_caught or delivery is None:
                continue
            if self._claiming:
                await self._consider(delivery)
            else:  # it came with the word to stop: without an answer it would be nobody's for half a minute
                await self._life.insist("give back", partial(delivery.later, GIVEN_BACK_S))

    async def _until_free(self) -> None:
        """Wait for a slot; meanwhile bring the next job's inputs here. What is not here by then comes with the job."""
        if self._means.slots.free > 0:
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._look_ahead)
            await self._means.slots.until_free()
            tasks.cancel_scope.cancel()

    async def _look_ahead(self) -> None:
        """Once a job waits, look at the first."""
        pools = list(self._pools)
        await anyio.sleep(self._life.pace.ahead_s)
        with suppress(BusError):
            while not await fetch_ahead(self._life, self._means.kinds, partial(self._sweep, self._lanes(pools))):
                await self._wake(pools)

    def stop(self) -> None:
        """Take nothing more; what was taken is given back."""
        self._claiming = False
        self._idle.cancel()

    async def _next(self) -> Delivery | None:
        """One pointer, or None after the idle wait. A cut is waited out like idleness.

        What woke us is asked first: every other lane was empty before, and would have woken us too.
        """
        cannot = await self._ready.cannot()
        pools = [name for name, kinds in self._pools.items() if any(kind.name not in cannot for kind in kinds)]
        woken, self._woken = self._woken, frozenset()
        try:
            delivery = await self._sweep([lane for lane in _by_priority(woken) if lane.pool in pools], WOKEN_S)
            if delivery is None:
                delivery = await self._sweep(self._lanes(pools))
            if delivery is None:
                self._woken = await self._wake(pools)
        except BusError as error:
            self._life.away("claim", error)
            await anyio.sleep(self._life.pace.idle_s)
            return None
        return delivery

    def _lanes(self, pools: list[str]) -> list[Lane]:
        """High, normal, low; within a priority another pool comes first each time."""
        self._turn += 1
        first = self._turn % len(pools) if pools else 0
        return [Lane(pool, priority) for priority in PRIORITIES for pool in pools[first:] + pools[:first]]

    async def _sweep(self, lanes: Iterable[Lane], wait_s: float = 0.0) -> Delivery | None:
        for lane in lanes:
            delivery = await self._life.bus.queue.take(lane.pool, lane.priority, wait_s)
            if delivery is not None:
                return delivery
        return None

    async def _wake(self, pools: list[str]) -> frozenset[Lane]:
        if pools:
            return await self._life.bus.queue.woken(pools, self._life.pace.idle_s)
        await anyio.sleep(self._life.pace.idle_s)
        return frozenset()

    async def _consider(self, delivery: Delivery) -> None:
        """Do what the record says, however often the broker goes away meanwhile."""
        await self._life.insist("claim", partial(self._decide, delivery))

    async def _decide(self, delivery: Delivery) -> None:
        pointer = delivery.pointer
        execution = self._roster.there.get(Place(pointer.key, pointer.round))
        if execution is not None and execution.phase is Phase.CLEARING:
            await delivery.later(CLEARING_S)
        elif execution is not None and (execution.delivery is None or execution.delivery.sequence == delivery.sequence):
            execution.delivery = delivery
        elif execution is not None:
            await delivery.done()
        elif self._roster.rounds(pointer.key):
            await delivery.later(CLEARING_S)
        else:
            await self._by_record(delivery)

    async def _by_record(self, delivery: Delivery) -> None:
        """Carry out the step that the record asks for; on a conflict it may ask for another one."""
        carry_out: dict[type[Step], Callable[[Any, Delivery], Awaitable[None]]] = {
            Drop: lambda _, given: given.done(),
            Later: lambda step_, given: given.later(step_.delay_s),
            Start: self._start,
            Ours: lambda step_, given: self._adopter.one(step_.entry, given),
            Theirs: self._theirs,
        }
        while True:
            asked = await self._judged(delivery)
            try:
                return await carry_out[type(asked)](asked, delivery)
            except Conflict:
                continue

    async def _judged(self, delivery: Delivery) -> Step:
        try:
            entry = await self._life.bus.records.read(delivery.pointer.key)
        except RecordUnreadable as error:
            self._life.log.warning("record unreadable", job_id=delivery.pointer.id, why=str(error))
            return Later(UNSETTLED_S)
        return judge(delivery.pointer, entry, self._life.host, self._life.now())

    async def _start(self, asked: Start, delivery: Delivery) -> None:
        """Claim it; no work is done before the claim is recorded."""
        job = asked.entry.recorded.job
        kind = self._means.kinds.get(job.endpoint)
        placed = await self._ready.place(kind) if kind else None
        permit = self._means.slots.take()
        if kind is None or permit is None or not isinstance(placed, Placed):
            if permit is not None:
                permit.idle()
            return await delivery.later(ELSEWHERE_S)
        spare = self._standby.take(kind)
        holding = spare.holding if spare else self._means.cards.hold(placed.uuids, kind.endpoint)
        claim = self._life.claim(job.attempt + 1, holding.uuids)
        try:
            await self._standby.give_way(holding)
            claimed = await advance(self._life, asked.entry, Started(claim))
        except BaseException:
            permit.idle()
            await self._standby.give_back(spare) if spare else holding.release()
            raise
        self._roster.launch(Ticket(claimed, kind, holding, spare=spare), permit, delivery)
        self._life.log_of(job).info("claimed", round=claimed.round, attempt=claimed.attempt, warm=spare is not None)
        return None

    async def _theirs(self, asked: Theirs, delivery: Delivery) -> None:
        """Another host's: leave it to that one, unless it is gone; then the attempt is released, and may start here."""
        if not await self._gone(asked.entry.recorded.job):
            return await delivery.later(THEIRS_S)
        await advance(self._life, asked.entry, released(self._life, asked.entry.recorded.job))
        raise Conflict("the record is another now: it is judged again")

    async def _gone(self, job: Job) -> bool:
        """Whether the life that claimed `job` is over; nobody may say so who was not connected long enough."""
        if job.claim is None or self._life.bus.link.unbroken_s() < GONE_AFTER_S:
            return False
        try:
            row = await self._life.bus.hosts.get(job.claim.host)
        except Unreadable as error:
            self._life.log.warning("presence unreadable", claimed_by=job.claim.host, error=str(error))
            return True  # a living host writes it again every few seconds
        return row is None or row.value.incarnation != job.claim.incarnation


def _by_priority(lanes: Iterable[Lane]) -> list[Lane]:
    return sorted(lanes, key=lambda lane: PRIORITIES.index(lane.priority))
