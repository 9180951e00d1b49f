"""JOBS: pointers, fetched without waiting from one durable consumer a pool and priority."""

from collections import defaultdict
from collections.abc import Collection

import anyio
import msgspec
import structlog
from nats.aio.msg import Msg

from bus.interface import WAKE_GRACE_S, BusError, Lane, QueueMessage
from bus.nats import subjects
from bus.nats.jetstream import AckableMessage, JetStreamClient
from bus.nats.requests import parse_ack_subject
from bus.nats.topology import JOBS, ensure_pull_consumers
from schemas.job import Pointer
from schemas.status import Priority

log = structlog.get_logger(__name__)


class NatsQueueMessage(AckableMessage):
    """A pointer in a runner's hands."""

    def __init__(self, js: JetStreamClient, reply: str, pointer: Pointer, sequence: int) -> None:
        super().__init__(js, reply, pointer.id)
        self.pointer = pointer
        self.sequence = sequence


class NatsJobQueue:
    """`heard_wake` is to be given every message of `wake.*`."""

    def __init__(self, js: JetStreamClient) -> None:
        self._js = js
        self._pools: set[str] = set()
        self._turns: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._woken: set[Lane] = set()
        self._wake = anyio.Event()

    async def ensure_consumers(self, pools: Collection[str]) -> None:
        """Make the consumers, now and again on every reconnect."""
        for pool in set(pools):
            await ensure_pull_consumers(self._js, pool)
            self._pools.add(pool)

    async def ensure_known_consumers(self) -> None:
        """The consumers of every pool known so far."""
        await self.ensure_consumers(frozenset(self._pools))

    async def publish(self, pointer: Pointer, *, repair: bool = False) -> None:
        """The broker's deduplication is a help, never the authority: hence the round in the subject."""
        subject, wake = subjects.pointer_subject(pointer), subjects.wake_subject(pointer.pool, pointer.priority)
        began = anyio.current_time()
        await self._js.connection.publish(wake)
        await self._js.publish(subject, msgspec.json.encode(pointer), message_id=None if repair else subject)
        if anyio.current_time() - began > WAKE_GRACE_S / 2:
            await self._js.connection.publish(wake)

    async def fetch(self, pool: str, priority: Priority, wait_s: float = 0.0) -> QueueMessage | None:
        """One fetch a lane at a time, so that a message without a token can be given to its asker."""
        lane = subjects.lane_consumer(pool, priority)
        async with self._turns[lane]:
            while (message := await self._js.connection.fetch(JOBS.name, lane, wait_s)) is not None:
                pointer, got = subjects.parse_pointer_subject(message.subject), parse_ack_subject(message.reply)
                if pointer is not None and got is not None:
                    return NatsQueueMessage(self._js, message.reply, pointer, got.sequence)
                log.error("removed a message that names no job", subject=message.subject)
                await self._js.connection.request(message.reply, b"+TERM")
        return None

    async def remove(self, pointer: Pointer) -> None:
        """One message after the other: nats-server 2.15.1 then goes on handing out the rest.

        A purge of the subject, while others publish and fetch, moves the consumer past messages that it never handed
        out; they lie in the stream for ever (tests/bus/test_withdraw.py).
        """
        await self._js.secure_delete_subject(JOBS.name, subjects.pointer_subject(pointer))

    async def list_pending(self, owner: str | None = None) -> set[Pointer]:
        """From the subjects that hold a message."""
        held = await self._js.list_subjects(JOBS.name, f"job.*.*.{owner}.>" if owner else "job.>")
        return {pointer for subject in held if (pointer := subjects.parse_pointer_subject(subject))}

    def on_wake(self, message: Msg | BusError) -> None:
        """Remember it: a wake between a fetch that found nothing and `woken` must not be lost."""
        lane = None if isinstance(message, BusError) else subjects.parse_wake_subject(message.subject)
        if lane is not None:
            self._woken.add(lane)
            self._wake.set()
            self._wake = anyio.Event()

    async def wait_for_messages(self, pools: Collection[str], timeout_s: float) -> frozenset[Lane]:
        """A wake since the last call counts."""
        with anyio.move_on_after(timeout_s):
            while not any(lane.pool in pools for lane in self._woken):
                await self._wake.wait()
        heard = frozenset(lane for lane in self._woken if lane.pool in pools)
        self._woken -= heard
        return heard
