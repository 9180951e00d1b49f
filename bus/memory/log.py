"""A stream: messages in one order, the last of every subject, deduplication, limits."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import anyio

from bus.port import Conflict, StoreFull, TooLarge

DEDUPE_S = 120.0
MAX_PAYLOAD = 2 * 1024 * 1024  # as in nats.conf

Clock = Callable[[], float]


class Message(NamedTuple):
    """`source`: the sequence in the stream it was sourced from. `at`: seconds of the broker's clock."""

    sequence: int
    subject: str
    data: bytes
    at: float
    source: int | None = None


class Log:
    """`per_subject`: messages kept of one subject. `ttl_s`: seconds one is kept."""

    def __init__(self, clock: Clock, *, per_subject: int | None = None, ttl_s: float | None = None) -> None:
        self._clock = clock
        self._per_subject = per_subject
        self._ttl_s = ttl_s
        self._messages: dict[int, Message] = {}
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
        if message_id is not None and now - self._ids.get(message_id, (-DEDUPE_S, 0))[0] < DEDUPE_S:
            return None
        self._admit(subject, data, expect)
        self.last += 1
        if message_id is not None:
            self._ids[message_id] = (now, self.last)
        self._messages[self.last] = Message(self.last, subject, data, now, source)
        self._order.append(self.last)
        self._of[subject].append(self.last)
        if self._per_subject is not None and len(self._of[subject]) > self._per_subject:
            self.erase(self._of[subject][0])
        self.grown.set()
        self.grown = anyio.Event()
        return self.last

    def _admit(self, subject: str, data: bytes, expect: int | None) -> None:
        if len(data) > MAX_PAYLOAD:
            raise TooLarge(f"{subject}: {len(data)} bytes are more than the broker takes ({MAX_PAYLOAD})")
        if self.full:
            raise StoreFull(f"{subject}: the store has no room")
        last = self.of(subject)
        if expect is not None and expect != (last[-1].sequence if last else 0):
            raise Conflict(f"{subject} has moved past revision {expect}: read it again")

    def get(self, sequence: int) -> Message | None:
        """One message, None when it is not held any more."""
        return self._messages.get(sequence)

    def of(self, subject: str) -> list[Message]:
        """What is held of one subject, oldest first."""
        self._expire()
        return [self._messages[sequence] for sequence in self._of.get(subject, ())]

    def behind(self, sequence: int, prefix: str) -> list[Message]:
        """What lies behind `sequence` under subjects that start with `prefix`, in order."""
        self._expire()
        held = self._order[bisect_right(self._order, sequence) :]
        return [self._messages[s] for s in held if self._messages[s].subject.startswith(prefix)]

    def erase(self, sequence: int) -> None:
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
                self.erase(message.sequence)
