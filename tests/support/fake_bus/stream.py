"""A stream in memory: messages in order, the last of every subject, deduplication, limits; and STATE with FEED."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

from bus.interface import BrokerFull, MessageTooLarge, RevisionConflict
from bus.nats import wire
from bus.notifier import Notifier

DEDUPLICATION_WINDOW_S = 120.0
PAYLOAD_LIMIT_BYTES = 2 * 1024 * 1024  # as in nats.conf

Clock = Callable[[], float]


class FakeMessage(NamedTuple):
    """`source`: the sequence in the stream that it was sourced from. `at`: seconds of the broker's clock."""

    sequence: int
    subject: str
    data: bytes
    at: float
    source: int | None = None


class FakeStream:
    """`per_subject`: how many messages of a subject are kept. `ttl_s`: how many seconds a message is kept."""

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
        self.grown = Notifier()

    @property
    def first(self) -> int:
        """The first sequence, one after the last when the stream is empty."""
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
        """Return the new sequence, None when the id is known.

        `expect`: the subject's last sequence, else RevisionConflict.
        """
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
        self.grown.notify()
        return self.last

    def _check_append(self, subject: str, data: bytes, expect: int | None) -> None:
        if len(data) > PAYLOAD_LIMIT_BYTES:
            raise MessageTooLarge(
                f"{subject}: {len(data)} bytes are more than the broker accepts ({PAYLOAD_LIMIT_BYTES})"
            )
        if self.full:
            raise BrokerFull(f"{subject}: the store has no room")
        last = self.messages_of(subject)
        if expect is not None and expect != (last[-1].sequence if last else 0):
            raise RevisionConflict(f"{subject} has moved past revision {expect}: read it again")

    def get(self, sequence: int) -> FakeMessage | None:
        """Return one message, None when it is not stored."""
        return self._messages.get(sequence)

    def messages_of(self, subject: str) -> list[FakeMessage]:
        """Return the messages of one subject, oldest first."""
        self._expire()
        return [self._messages[sequence] for sequence in self._of.get(subject, ())]

    def messages_after(self, sequence: int, prefix: str) -> list[FakeMessage]:
        """Return the messages after `sequence` under subjects that start with `prefix`, in order."""
        self._expire()
        held = self._order[bisect_right(self._order, sequence) :]
        return [self._messages[s] for s in held if self._messages[s].subject.startswith(prefix)]

    def delete(self, sequence: int) -> None:
        """Remove one message, if stored."""
        message = self._messages.pop(sequence, None)
        if message is not None:
            self._order.remove(sequence)
            self._of[message.subject].remove(sequence)

    def forget_removed_ids(self) -> None:
        """Forget the ids of messages that are not stored any more, as a broker does at a restart."""
        self._ids = {name: seen for name, seen in self._ids.items() if seen[1] in self._messages}

    def _expire(self) -> None:
        if self._ttl_s is None:
            return
        for message in list(self._messages.values()):
            if self._clock() - message.at >= self._ttl_s:
                self.delete(message.sequence)


class FakeStatePair(NamedTuple):
    """STATE and FEED: what is written to the one appears in the other. `epoch` names this FEED."""

    state: FakeStream
    feed: FakeStream
    epoch: str

    def write(self, subject: str, data: bytes, expect: int | None = None) -> int:
        """Write any bytes to the subject of a record, as another program could; return the new revision."""
        revision = self.state.append(subject, data, expect=expect)
        if revision is None:
            raise AssertionError("only a message with an id can be a duplicate")
        key = wire.parse_record_key(subject)
        self.feed.append(f"feed.{key.owner}.{key.id}.state", data, source=revision)
        return revision
