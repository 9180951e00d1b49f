"""A stream: messages in one order, the last of every subject, deduplication, limits."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import anyio

from bus.interface import BrokerFull, MessageTooLarge, RevisionConflict
from bus.nats import subjects

DEDUPLICATION_WINDOW_S = 120.0
PAYLOAD_LIMIT_BYTES = 2 * 1024 * 1024  # as in nats.conf

Clock = Callable[[], float]


class FakeMessage(NamedTuple):
    """`source`: the sequence in the stream it was sourced from. `at`: seconds of the broker's clock."""

    sequence: int
    subject: str
    data: bytes
    at: float
    source: int | None = None


class FakeStream:
    """`per_subject`: messages kept of one subject. `ttl_s`: seconds one is kept."""

    def __init__(self, clock: Clock, *, per_subject: int | None = None, ttl_s: float | None = None) -> None:
        self._clock = clock
        self._per_subject = per_subject
        self._ttl_s = ttl_s
        self._messages: dict[int, FakeMessage] = {}
        self._order: list[int] = []
        self._of: defaultdict[str, list[int]] = defaultdict(list)
        self._ids: dict[str, tuple[float, int]] = {}
        self.last = 0
        self.full = False
        self.grown = anyio.Event()

    @property
    def first(self) -> int:
        """The first sequence held, one behind the last when there is none."""
        return self._order[0] if self._order else self.last + 1

    def append(
        self,
        subject: str,
        data: bytes,
        *,
        message_id: str | None = None,
        expect: int | None = None,
        source: int | None = None,
    ) -> int | None:
        """The sequence it got, None when its id is known. `expect`: the subject's last sequence, else Conflict."""
        now = self._clock()
        if (
            message_id is not None
            and now - self._ids.get(message_id, (-DEDUPLICATION_WINDOW_S, 0))[0] < DEDUPLICATION_WINDOW_S
        ):
            return None
        self._check_append(subject, data, expect)
        self.last += 1
        if message_id is not None:
            self._ids[message_id] = (now, self.last)
        self._messages[self.last] = FakeMessage(self.last, subject, data, now, source)
        self._order.append(self.last)
        self._of[subject].append(self.last)
        if self._per_subject is not None and len(self._of[subject]) > self._per_subject:
            self.delete(self._of[subject][0])
        self.grown.set()
        self.grown = anyio.Event()
        return self.last

    def _check_append(self, subject: str, data: bytes, expect: int | None) -> None:
        if len(data) > PAYLOAD_LIMIT_BYTES:
            raise MessageTooLarge(
                f"{subject}: {len(data)} bytes are more than the broker takes ({PAYLOAD_LIMIT_BYTES})"
            )
        if self.full:
            raise BrokerFull(f"{subject}: the store has no room")
        last = self.messages_of(subject)
        if expect is not None and expect != (last[-1].sequence if last else 0):
            raise RevisionConflict(f"{subject} has moved past revision {expect}: read it again")

    def get(self, sequence: int) -> FakeMessage | None:
        """One message, None when it is not held any more."""
        return self._messages.get(sequence)

    def messages_of(self, subject: str) -> list[FakeMessage]:
        """What is held of one subject, oldest first."""
        self._expire()
        return [self._messages[sequence] for sequence in self._of.get(subject, ())]

    def messages_after(self, sequence: int, prefix: str) -> list[FakeMessage]:
        """What lies behind `sequence` under subjects that start with `prefix`, in order."""
        self._expire()
        held = self._order[bisect_right(self._order, sequence) :]
        return [self._messages[s] for s in held if self._messages[s].subject.startswith(prefix)]

    def delete(self, sequence: int) -> None:
        """Remove one message, if held."""
        message = self._messages.pop(sequence, None)
        if message is not None:
            self._order.remove(sequence)
            self._of[message.subject].remove(sequence)

    def forget_removed_ids(self) -> None:
        """What a restart of the broker does to deduplication: only ids of messages still held are known."""
        self._ids = {name: seen for name, seen in self._ids.items() if seen[1] in self._messages}

    def _expire(self) -> None:
        if self._ttl_s is None:
            return
        for message in list(self._messages.values()):
            if self._clock() - message.at >= self._ttl_s:
                self.delete(message.sequence)


# MERGED bus/memory/streams.py: STATE and FEED together: what is written to the one appears in the other, as the
# broker's sourcing does it.


class FakeStatePair(NamedTuple):
    """`epoch` names this life of FEED."""

    state: FakeStream
    feed: FakeStream
    epoch: str

    def write(self, subject: str, data: bytes, expect: int | None = None) -> int:
        """Any bytes to a record's subject, as any program could; the new revision."""
        revision = self.state.append(subject, data, expect=expect)
        if revision is None:
            raise AssertionError("only a message with an id can be a duplicate")
        key = subjects.parse_record_key(subject)
        self.feed.append(f"feed.{key.owner}.{key.id}.state", data, source=revision)
        return revision
