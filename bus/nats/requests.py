"""What the broker writes into the reply subject of a message that a consumer delivers (ADR-15)."""

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from nats.aio.msg import Msg

from bus.interface import BusError

_DIGITS = 20  # of the largest unsigned 64-bit number


class AckSubject(NamedTuple):
    """`sequence` in the stream, `step` in the consumer's own count; `pending` more were matching then; `at` in ns."""

    stream: str
    consumer: str
    sequence: int
    consumer_sequence: int
    stored_at_ns: int
    pending: int


def parse_ack_subject(reply: str) -> AckSubject | None:
    """The parts of `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<tries>.<seq>.<step>.<ns>.<pending>`."""
    tokens = reply.split(".")
    if len(tokens) < 9 or tokens[:2] != ["$JS", "ACK"]:
        return None
    stream, consumer, _, *counts = (tokens[2:] if len(tokens) == 9 else tokens[4:])[:7]
    if len(counts) != 4 or not all(count.isascii() and count.isdigit() and len(count) <= _DIGITS for count in counts):
        return None
    sequence, step, at, pending = map(int, counts)
    return AckSubject(stream, consumer, sequence, step, at, pending)


# MERGED bus/answers.py: Who waits for which answer. All answers of a connection come to one inbox; nobody subscribes
# to ask.


ConsumerId = tuple[str, str]  # a stream and its consumer


class PendingRequest(NamedTuple):
    """`reply`: where the answer is to be sent; `answer`: the message, or why there is none."""

    subject: str
    reply: str
    reply_future: asyncio.Future[Msg | BusError]

    def resolve(self, outcome: Msg | BusError) -> None:
        """The first outcome counts. An error is a value here: a future nobody reads must not complain."""
        if not self.reply_future.done():
            self.reply_future.set_result(outcome)


class RequestMultiplexer:
    """Replies to `prefix` and a token belong to whoever was given that token."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._tokens = itertools.count(1)
        self._asked: dict[str, PendingRequest] = {}
        self._fetching: dict[ConsumerId, PendingRequest] = {}

    def new_token(self) -> str:
        """A new one."""
        return f"{next(self._tokens):x}"

    @contextmanager
    def expect_reply(self, subject: str, consumer: ConsumerId | None = None) -> Iterator[PendingRequest]:
        """An answer to what is sent to `subject` now.

        A message that a consumer hands out comes under its own subject: it is known by `consumer`, which only one may
        ask at a time. A status comes under the token, like every other answer.
        """
        token = self.new_token()
        asked = PendingRequest(subject, self._prefix + token, asyncio.get_running_loop().create_future())
        self._asked[token] = asked
        if consumer is not None:
            self._fetching[consumer] = asked
        try:
            yield asked
        finally:
            del self._asked[token]
            if consumer is not None:
                del self._fetching[consumer]

    def deliver(self, message: Msg) -> bool:
        """Give an answer to its asker; False when there is none any more."""
        if message.subject.startswith(self._prefix):
            asked = self._asked.get(message.subject.removeprefix(self._prefix))
        else:
            delivered = parse_ack_subject(message.reply)
            asked = self._fetching.get((delivered.stream, delivered.consumer)) if delivered else None
        if asked is None or asked.reply_future.done():
            return False
        asked.resolve(message)
        return True

    def fail_requests(self, error: BusError, subject: str | None = None) -> None:
        """Nobody will answer what was sent to `subject` (in lower case; None: to any)."""
        for asked in self._asked.values():
            if subject in (None, asked.subject.lower()):
                asked.resolve(error)
