"""Match replies to requests: one inbox for all replies of a connection, and the parser of JetStream's ack subjects."""

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from nats.aio.msg import Msg

from bus.interface import BusError

_DIGITS = 20  # of the largest unsigned 64-bit number


class AckSubject(NamedTuple):
    """The parts of the reply subject of a message that a consumer delivers (ADR-15 of NATS).

    `sequence` counts in the stream, `consumer_sequence` in the consumer. `pending` more messages matched at that time.
    """

    stream: str
    consumer: str
    sequence: int
    consumer_sequence: int
    stored_at_ns: int
    pending: int


def parse_ack_subject(reply: str) -> AckSubject | None:
    """Parse `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<tries>.<seq>.<step>.<ns>.<pending>`; None for another
    subject.
    """
    tokens = reply.split(".")
    if len(tokens) < 9 or tokens[:2] != ["$JS", "ACK"]:
        return None
    stream, consumer, _, *counts = (tokens[2:] if len(tokens) == 9 else tokens[4:])[:7]
    if len(counts) != 4 or not all(count.isascii() and count.isdigit() and len(count) <= _DIGITS for count in counts):
        return None
    return AckSubject(stream, consumer, *map(int, counts))


ConsumerId = tuple[str, str]  # a stream and its consumer


class PendingRequest(NamedTuple):
    """A request without a reply so far. `reply_future` gets the message, or the error in its place; None: too late."""

    subject: str
    reply: str
    reply_future: asyncio.Future[Msg | BusError | None]

    def resolve(self, outcome: Msg | BusError | None) -> None:
        """Set the outcome; the first one counts.

        An error is a value here, because a future that is not awaited must not warn.
        """
        if not self.reply_future.done():
            self.reply_future.set_result(outcome)


class RequestMultiplexer:
    """Give each request its own reply subject: `prefix` and a token."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._tokens = itertools.count(1)
        self._pending: dict[str, PendingRequest] = {}
        self._fetching: dict[ConsumerId, PendingRequest] = {}

    def new_token(self) -> str:
        """Return a token that was not used before."""
        return f"{next(self._tokens):x}"

    @contextmanager
    def expect_reply(self, subject: str, consumer: ConsumerId | None = None) -> Iterator[PendingRequest]:
        """Expect a reply to the request that is sent to `subject` now.

        A message that a consumer delivers arrives under its own subject, not under the token. It is matched by
        `consumer`, for which only one request at a time may be pending. A status arrives under the token, like every
        other reply.
        """
        token = self.new_token()
        request = PendingRequest(subject, self._prefix + token, asyncio.get_running_loop().create_future())
        self._pending[token] = request
        if consumer is not None:
            self._fetching[consumer] = request
        try:
            yield request
        finally:
            del self._pending[token]
            if consumer is not None:
                del self._fetching[consumer]

    def deliver(self, message: Msg) -> bool:
        """Give a reply to its request; return False when the request is not pending any more."""
        if message.subject.startswith(self._prefix):
            request = self._pending.get(message.subject.removeprefix(self._prefix))
        else:
            ack = parse_ack_subject(message.reply)
            request = self._fetching.get((ack.stream, ack.consumer)) if ack else None
        if request is None or request.reply_future.done():
            return False
        request.resolve(message)
        return True

    def fail_requests(self, error: BusError, subject: str | None = None) -> None:
        """Fail the pending requests to `subject` (in lower case; None: all requests)."""
        for request in self._pending.values():
            if subject in (None, request.subject.lower()):
                request.resolve(error)
