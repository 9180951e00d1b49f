"""Consumers of FEED for readers. A reader asks the JetStream API as usual, and an edge answers in its place.

A consumer delivers within the account of its stream. One that a reader made itself could deliver to any subject of the
edge's account: over a key, or to a call of the API. So readers get consumers that are pulled from, and the names of the
edges' own consumers are not theirs to use.
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

EDGE_QUEUE_GROUP = "edges"  # each request is for one of them
BAD_REQUEST = 10003  # err_code of the JetStream API
# What a consumer that is pulled from can be asked to do. What is not named here is left out.
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
    """The body of CONSUMER.CREATE."""

    stream_name: str = ""
    config: dict[str, Any] = {}
    action: str = ""


class ReaderRequestRefused(Exception):
    """A reader may not have this consumer. The message says why, and what to do."""


class ReaderConsumerProxy:
    """One edge's part in it."""

    def __init__(self, wire: NatsConnection) -> None:
        self._wire = wire

    async def serve(self) -> None:
        """Answer readers, one after the other, without end."""
        asked: asyncio.Queue[Msg | BusError] = asyncio.Queue()
        async with self._wire.subscribed(f"{READER_API_PREFIX}>", asked.put_nowait, EDGE_QUEUE_GROUP):
            while True:
                message = await asked.get()
                if isinstance(message, Msg) and message.reply:
                    await self._handle_request(message)

    async def _handle_request(self, message: Msg) -> None:
        verb = message.subject.removeprefix(READER_API_PREFIX)
        try:
            body = _checked_body(verb, message.data)
            answer = (await self._wire.request(f"$JS.API.{verb}", body)).data
        except ReaderRequestRefused as refusal:
            answer = _error_response(refusal)
        except BusError as error:
            log.warning("a reader was not answered", verb=verb, error=str(error))
            return
        try:
            await self._wire.publish(message.reply, answer)
        except BusError as error:
            log.warning("a reader was not answered", verb=verb, error=str(error))


def _checked_body(verb: str, given: bytes) -> bytes:
    """What to ask the API for. Raises Refusal."""
    action, _, name = verb.removeprefix("CONSUMER.").partition(f".{FEED.name}")
    name = name.removeprefix(".").partition(".")[0]
    if action == "DELETE":
        _check_consumer_name(name)
        return b""
    try:
        asked = msgspec.json.decode(given, type=_ConsumerRequest)
    except DECODE_ERRORS as error:
        raise ReaderRequestRefused(
            f"the body is not a consumer's configuration ({error}): see CONSUMER.CREATE of JetStream"
        ) from error
    for one in (name, asked.config.get("name"), asked.config.get("durable_name")):
        _check_consumer_name(one)
    if asked.config.get("deliver_subject"):
        raise ReaderRequestRefused("a reader's consumer is pulled from: leave deliver_subject out (docs/following.md)")
    return msgspec.json.encode(msgspec.structs.replace(asked, config=_allowed_config(asked.config)))


def _check_consumer_name(name: object) -> None:
    if isinstance(name, str) and name.startswith(EDGE.inbox):
        raise ReaderRequestRefused(f"consumers whose name begins with {EDGE.inbox} are the edges': choose another name")


def _allowed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name in ALLOWED_CONSUMER_FIELDS}


def _error_response(refusal: ReaderRequestRefused) -> bytes:
    """As the API says it."""
    return msgspec.json.encode({"error": {"code": 400, "err_code": BAD_REQUEST, "description": str(refusal)}})
