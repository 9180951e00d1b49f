"""Serve the requests of readers for consumers of FEED.

A reader asks the JetStream API as usual; an edge answers instead.

A consumer delivers within the account of its stream. A reader's own push consumer could therefore deliver to any
subject of the edge's account, such as a key or an API call. So readers get pull consumers only, and may not use the
names of the edges' own consumers.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog
from msgspec import Struct
from nats.aio.msg import Msg

from bus.interface import BusError
from bus.nats.connection import NatsConnection
from bus.nats.topology import FEED
from bus.nats.users import EDGE, READER_API_PREFIX
from schemas.events import DECODE_ERRORS

EDGE_QUEUE_GROUP = "edges"  # the broker gives each request to one member
BAD_REQUEST = 10003  # err_code of the JetStream API
# The settings that a pull consumer may have. Others are left out.
ALLOWED_CONSUMER_FIELDS = frozenset(
    {
        "name",
        "durable_name",
        "description",
        "deliver_policy",
        "opt_start_seq",
        "opt_start_time",
        "ack_policy",
        "ack_wait",
        "max_deliver",
        "backoff",
        "filter_subject",
        "filter_subjects",
        "replay_policy",
        "sample_freq",
        "max_waiting",
        "max_ack_pending",
        "headers_only",
        "max_batch",
        "max_expires",
        "max_bytes",
        "inactive_threshold",
        "num_replicas",
        "mem_storage",
        "metadata",
    }
)

log = structlog.get_logger(__name__)


class _ConsumerRequest(Struct, frozen=True, omit_defaults=True):
    """The body of a CONSUMER.CREATE request."""

    stream_name: str = ""
    config: dict[str, Any] = {}
    action: str = ""


class ReaderRequestRefused(Exception):
    """A reader may not have this consumer. The message says why, and what to do."""


class ReaderConsumerProxy:
    """One edge's part: the broker gives each request to one of the edges."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection

    async def serve(self) -> None:
        """Answer the requests of readers one after the other, without end."""
        requests: asyncio.Queue[Msg | BusError] = asyncio.Queue()
        async with self._connection.subscribed(f"{READER_API_PREFIX}>", requests.put_nowait, EDGE_QUEUE_GROUP):
            while True:
                message = await requests.get()
                if isinstance(message, Msg) and message.reply:
                    await self._handle_request(message)

    async def _handle_request(self, message: Msg) -> None:
        verb = message.subject.removeprefix(READER_API_PREFIX)
        try:
            body = _checked_body(verb, message.data)
            answer = (await self._connection.request(f"$JS.API.{verb}", body)).data
        except ReaderRequestRefused as refusal:
            answer = _error_response(refusal)
        except BusError as error:
            log.warning("reader_request_failed", verb=verb, error=str(error))
            return
        try:
            await self._connection.publish(message.reply, answer)
        except BusError as error:
            log.warning("reader_request_failed", verb=verb, error=str(error))


def _checked_body(verb: str, data: bytes) -> bytes:
    """Return the body to send to the JetStream API. Raises ReaderRequestRefused."""
    action, _, name = verb.removeprefix("CONSUMER.").partition(f".{FEED.name}")
    name = name.removeprefix(".").partition(".")[0]
    if action == "DELETE":
        _check_consumer_name(name)
        return b""
    try:
        request = msgspec.json.decode(data, type=_ConsumerRequest)
    except DECODE_ERRORS as error:
        raise ReaderRequestRefused(
            f"the body is not a consumer's configuration ({error}): see CONSUMER.CREATE of JetStream"
        ) from error
    for one in (name, request.config.get("name"), request.config.get("durable_name")):
        _check_consumer_name(one)
    if request.config.get("deliver_subject"):
        raise ReaderRequestRefused(
            "a reader's consumer must be a pull consumer: leave deliver_subject out (docs/following.md)"
        )
    return msgspec.json.encode(msgspec.structs.replace(request, config=_allowed_config(request.config)))


def _check_consumer_name(name: object) -> None:
    if isinstance(name, str) and name.startswith(EDGE.inbox):
        raise ReaderRequestRefused(f"consumers whose name begins with {EDGE.inbox} are the edges': choose another name")


def _allowed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name in ALLOWED_CONSUMER_FIELDS}


def _error_response(refusal: ReaderRequestRefused) -> bytes:
    """Return the refusal in the form of a JetStream API error."""
    return msgspec.json.encode({"error": {"code": 400, "err_code": BAD_REQUEST, "description": str(refusal)}})
