"""JOBS over the broker: pointers, fetched from one durable consumer for each pool and priority."""

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
from bus.notifier import Notifier
from schemas.job import Pointer
from schemas.status import Priority

log = structlog.get_logger(__name__)


class NatsQueueMessage(AckableMessage):
    """A pointer that was delivered to this runner."""

    def __init__(self, jetstream: JetStreamClient, reply: str, pointer: Pointer, sequence: int) -> None:
        super().__init__(jetstream, reply, pointer.id)
        self.pointer = pointer
        self.sequence = sequence


class NatsJobQueue:
    """The queue JOBS at the broker. The caller subscribes to `wake.*` and passes each message to `on_wake`."""

    def __init__(self, jetstream: JetStreamClient) -> None:
        self._jetstream = jetstream
        self._pools: set[str] = set()
        self._fetch_locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._woken: set[Lane] = set()
        self._wakes = Notifier()

    async def ensure_consumers(self, pools: Collection[str]) -> None:
        """Create the consumers now, and again on every reconnect."""
        for pool in set(pools):
            await ensure_pull_consumers(self._jetstream, pool)
            self._pools.add(pool)

    async def ensure_known_consumers(self) -> None:
        """Create the consumers of every pool that is known so far."""
        await self.ensure_consumers(frozenset(self._pools))

    async def publish(self, pointer: Pointer, *, repair: bool = False) -> None:
        """Wake the runners of the lane, then publish the pointer. Wake them again if storing it was slow.

        The round is part of the subject, which is the message id, so that a retry is not dropped as a duplicate. With
        `repair` there is no message id: the broker may still remember the id of the message that is gone.
        """
        subject, wake = subjects.pointer_subject(pointer), subjects.wake_subject(pointer.pool, pointer.priority)
        started = anyio.current_time()
        await self._jetstream.connection.publish(wake)
        await self._jetstream.publish(subject, msgspec.json.encode(pointer), message_id=None if repair else subject)
        if anyio.current_time() - started > WAKE_GRACE_S / 2:
            await self._jetstream.connection.publish(wake)

    async def fetch(self, pool: str, priority: Priority, wait_s: float = 0.0) -> QueueMessage | None:
        """Fetch one message. A lane has one fetch at a time: a delivered message does not name the fetch it answers."""
        lane = subjects.lane_consumer(pool, priority)
        async with self._fetch_locks[lane]:
            while (message := await self._jetstream.connection.fetch(JOBS.name, lane, wait_s)) is not None:
                pointer, ack = subjects.parse_pointer_subject(message.subject), parse_ack_subject(message.reply)
                if pointer is not None and ack is not None:
                    return NatsQueueMessage(self._jetstream, message.reply, pointer, ack.sequence)
                log.error("unreadable_pointer_removed", subject=message.subject)
                await self._jetstream.connection.request(message.reply, b"+TERM")
        return None

    async def remove(self, pointer: Pointer) -> None:
        """Delete the messages one by one: nats-server 2.15.1 then continues to deliver the rest.

        A purge of the subject while others publish and fetch moves the consumer past messages that it never delivered,
        and they stay in the stream forever (tests/bus/test_withdraw.py).
        """
        await self._jetstream.secure_delete_subject(JOBS.name, subjects.pointer_subject(pointer))

    async def list_pending(self, owner: str | None = None) -> set[Pointer]:
        """Read the subjects that hold a message."""
        stored = await self._jetstream.list_subjects(JOBS.name, f"job.*.*.{owner}.>" if owner else "job.>")
        return {pointer for subject in stored if (pointer := subjects.parse_pointer_subject(subject))}

    def on_wake(self, message: Msg | BusError) -> None:
        """Remember the wake: one between an empty fetch and `wait_for_messages` must not be lost."""
        lane = None if isinstance(message, BusError) else subjects.parse_wake_subject(message.subject)
        if lane is not None:
            self._woken.add(lane)
            self._wakes.notify()

    async def wait_for_messages(self, pools: Collection[str], timeout_s: float) -> frozenset[Lane]:
        """Return at once for a wake since the last call."""
        with anyio.move_on_after(timeout_s):
            await self._wakes.wait_until(lambda: any(lane.pool in pools for lane in self._woken))
        woken = frozenset(lane for lane in self._woken if lane.pool in pools)
        self._woken -= woken
        return woken
