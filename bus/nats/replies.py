"""Replies of the broker: matched to their requests over one inbox of the connection, and their errors mapped to ours.

The errors of nats-py and of the JetStream API become those of `bus.interface` here and nowhere else. The parser of
JetStream's ack subjects is here too, because a message that a consumer delivers is matched by its ack subject.
"""

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple

from nats import errors as foreign
from nats.aio.msg import Msg

from bus.interface import BrokerDenied, BrokerFull, BrokerUnreachable, BusError, MessageTooLarge, RevisionConflict


class JetStreamNotFound(BusError):
    """The message or consumer does not exist. Never leaves this package."""


class StreamNotFound(BrokerUnreachable):
    """The stream does not exist yet: no edge has connected so far, or the cluster is electing a leader."""


class ConfigMismatch(BusError):
    """The stream or consumer exists with another configuration. Never leaves this package."""


class TooFewServers(BusError):
    """The cluster has fewer servers than the replicas of a stream. Never leaves this package."""


class WriteInProcess(BrokerUnreachable):
    """The same message was published before, and the servers of a cluster have not agreed on it yet."""


# err_code of the JetStream API (server/errors.json of nats-server 2.15).
API_ERRORS: Mapping[int, type[BusError]] = MappingProxyType(
    {
        10071: RevisionConflict,  # wrong last sequence: N
        10164: RevisionConflict,  # wrong last sequence
        10054: MessageTooLarge,  # message size exceeds maximum allowed
        10023: BrokerFull,  # insufficient resources
        10028: BrokerFull,  # insufficient memory resources available
        10047: BrokerFull,  # insufficient storage resources available
        10077: BrokerFull,  # maximum messages, bytes exceeded
        10037: JetStreamNotFound,  # no message found
        10043: JetStreamNotFound,  # sequence not found
        10014: JetStreamNotFound,  # consumer not found
        10059: StreamNotFound,  # stream not found
        10057: JetStreamNotFound,  # stream message delete failed: the sequence is gone
        10012: ConfigMismatch,  # consumer create failed: the update is not possible
        10058: ConfigMismatch,  # stream name already in use with a different configuration
        10005: TooFewServers,  # no suitable peers for placement
        10074: TooFewServers,  # replicas > 1 not supported in non-clustered mode
        10009: BrokerUnreachable,  # JetStream cluster can not handle request: between two leaders
        10118: BrokerUnreachable,  # stream is offline: too few of its servers are there
        10119: BrokerUnreachable,  # consumer is offline
        10158: WriteInProcess,  # duplicate message id is in process
        10163: BrokerUnreachable,  # expected last sequence per subject temporarily unavailable: between two leaders
        10167: BrokerUnreachable,  # too many requests
        10194: BrokerUnreachable,  # stream is offline, with the reason
        10195: BrokerUnreachable,  # consumer is offline, with the reason
        10008: BrokerUnreachable,  # JetStream system temporarily unavailable
        10039: BrokerUnreachable,  # JetStream not enabled for account: the broker is still starting
        10076: BrokerUnreachable,  # JetStream not enabled
    }
)

CLIENT_ERRORS: tuple[tuple[type[Exception], type[BusError]], ...] = (
    (foreign.MaxPayloadError, MessageTooLarge),
    (foreign.AuthorizationError, BrokerDenied),
    (foreign.InvalidUserCredentialsError, BrokerDenied),
    (foreign.BadSubjectError, BusError),
    (foreign.Error, BrokerUnreachable),
    (OSError, BrokerUnreachable),  # TimeoutError is one
    (RuntimeError, BrokerUnreachable),  # uvloop's, for a write to a connection that has just been lost
)
CLIENT_ERROR_TYPES = tuple(kind for kind, _ in CLIENT_ERRORS)


def from_api_error(subject: str, err_code: int, description: str) -> BusError:
    """Return the error for a JetStream API error that answers a request to `subject`."""
    return API_ERRORS.get(err_code, BusError)(f"{subject}: {description} (JetStream error {err_code})")


def from_client_error(error: Exception, doing: str) -> BusError:
    """Return the error for an exception of nats-py. `doing` says what was attempted, for the message."""
    # nats-py raises its base error with the broker's text, not an AuthorizationError, when a login is refused.
    if "authorization violation" in str(error).lower():
        return BrokerDenied(f"{doing}: the broker refuses this user or password: correct the broker settings")
    mapped = next(ours for theirs, ours in CLIENT_ERRORS if isinstance(error, theirs))
    return mapped(f"{doing}: {error or type(error).__name__}")


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
