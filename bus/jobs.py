"""JOBS: pointers, fetched without waiting from one durable consumer a pool and priority."""

from collections import defaultdict
from collections.abc import Collection

import anyio
import msgspec
import structlog
from nats.aio.msg import Msg

from bus import subjects
from bus.acks import handed
from bus.handing import Handing
from bus.jetstream import JetStream
from bus.port import WOKEN_S, BusError, Delivery, Lane
from bus.topology import JOBS, ensure_lanes
from schemas.job import Pointer
from schemas.words import Priority

log = structlog.get_logger(__name__)


class JobsDelivery(Handing):
    """A pointer in a runner's hands."""

    def __init__(self, js: JetStream, reply: str, pointer: Pointer, sequence: int) -> None:
        super().__init__(js, reply, pointer.id)
        self.pointer = pointer
        self.sequence = sequence


class JobsQueue:
    """`heard_wake` is to be given every message of `wake.*`."""

    def __init__(self, js: JetStream) -> None:
        self._js = js
        self._pools: set[str] = set()
        self._turns: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._woken: set[Lane] = set()
        self._wake = anyio.Event()

    async def ensure(self, pools: Collection[str]) -> None:
        """Make the consumers, now and again on every reconnect."""
        for pool in set(pools):
            await ensure_lanes(self._js, pool)
            self._pools.add(pool)

    async def ensure_again(self) -> None:
        """The consumers of every pool known so far."""
        await self.ensure(frozenset(self._pools))

    async def publish(self, pointer: Pointer, *, repair: bool = False) -> None:
        """The broker's deduplication is a help, never the authority: hence the round in the subject."""
        subject, wake = subjects.pointer(pointer), subjects.wake(pointer.pool, pointer.priority)
        began = anyio.current_time()
        await self._js.wire.say(wake)
        await self._js.write(subject, msgspec.json.encode(pointer), message_id=None if repair else subject)
        if anyio.current_time() - began > WOKEN_S / 2:
            await self._js.wire.say(wake)

    async def take(self, pool: str, priority: Priority, wait_s: float = 0.0) -> Delivery | None:
        """One fetch a lane at a time, so that a message without a token can be given to its asker."""
        lane = subjects.lane(pool, priority)
        async with self._turns[lane]:
            while (message := await self._js.wire.fetch(JOBS.name, lane, wait_s)) is not None:
                pointer, got = subjects.parse_pointer(message.subject), handed(message.reply)
                if pointer is not None and got is not None:
                    return JobsDelivery(self._js, message.reply, pointer, got.sequence)
                log.error("removed a message that names no job", subject=message.subject)
                await self._js.wire.request(message.reply, b"+TERM")
        return None

    async def withdraw(self, pointer: Pointer) -> None:
        """One message after the other: nats-server 2.15.1 then goes on handing out the rest.

        A purge of the subject, while others publish and fetch, moves the consumer past messages that it never handed
        out; they lie in the stream for ever (tests/bus/test_withdraw.py).
        """
        await self._js.erase(JOBS.name, subjects.pointer(pointer))

    async def waiting(self, owner: str | None = None) -> set[Pointer]:
        """From the subjects that hold a message."""
        held = await self._js.subjects(JOBS.name, f"job.*.*.{owner}.>" if owner else "job.>")
        return {pointer for subject in held if (pointer := subjects.parse_pointer(subject))}

    def heard_wake(self, message: Msg | BusError) -> None:
        """Remember it: a wake between a fetch that found nothing and `woken` must not be lost."""
        lane = None if isinstance(message, BusError) else subjects.parse_wake(message.subject)
        if lane is not None:
            self._woken.add(lane)
            self._wake.set()
            self._wake = anyio.Event()

    async def woken(self, pools: Collection[str], timeout_s: float) -> frozenset[Lane]:
        """A wake since the last call counts."""
        with anyio.move_on_after(timeout_s):
            while not any(lane.pool in pools for lane in self._woken):
                await self._wake.wait()
        heard = frozenset(lane for lane in self._woken if lane.pool in pools)
        self._woken -= heard
        return heard
