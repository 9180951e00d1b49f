"""The outbox on the broker: a shared durable consumer on STATE, and DELIVERIES with another."""

from collections import defaultdict
from typing import Generic, TypeVar

import anyio
import structlog
from nats.aio.msg import Msg

from bus.interface import LeasedItem, WebhookDelivery
from bus.nats import subjects
from bus.nats.codec import try_decode_delivery, try_decode_record
from bus.nats.jetstream import AckableMessage, JetStreamClient
from bus.nats.requests import AckSubject, parse_ack_subject
from bus.nats.topology import DELIVERIES, STATE, WEBHOOK_CURSOR_CONSUMER, WEBHOOK_DELIVERY_CONSUMER
from schemas.events import encode_record

T = TypeVar("T")

log = structlog.get_logger(__name__)


class NatsLeasedItem(AckableMessage, Generic[T]):
    """A message of one of the two consumers."""

    def __init__(self, js: JetStreamClient, reply: str, name: str, value: T) -> None:
        super().__init__(js, reply, name)
        self._value = value

    @property
    def value(self) -> T:
        """What it says."""
        return self._value


class NatsLeasedDelivery(NatsLeasedItem[WebhookDelivery]):
    """A letter; it holds all that the job was given."""

    async def ack(self) -> None:
        """Erased first: what is only acknowledged stays on the broker's disk."""
        got = parse_ack_subject(self._reply)
        if got is not None:
            await self._js.secure_delete_message(DELIVERIES.name, got.sequence)
        await super().ack()


class NatsWebhookOutbox:
    """Each consumer is asked by one task at a time: a message without a token must find its asker."""

    def __init__(self, js: JetStreamClient) -> None:
        self._js = js
        self._turns: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)

    async def next_state_change(self) -> LeasedItem[WebhookDelivery | None] | None:
        """One state."""
        found = await self._fetch_message(STATE.name, WEBHOOK_CURSOR_CONSUMER)
        if found is None:
            return None
        message, got = found
        recorded = try_decode_record(message.data)
        letter = None if recorded is None else WebhookDelivery(got.sequence, recorded)
        return NatsLeasedItem(self._js, message.reply, message.subject, letter)

    async def enqueue(self, letter: WebhookDelivery) -> None:
        """The name of the letter is its Msg-Id."""
        subject = subjects.delivery_subject(letter.record.job.key, letter.revision, letter.replay)
        await self._js.publish(subject, encode_record(letter.record), message_id=subject)

    async def fetch(self) -> LeasedItem[WebhookDelivery] | None:
        """One letter; what is none is removed."""
        while (found := await self._fetch_message(DELIVERIES.name, WEBHOOK_DELIVERY_CONSUMER)) is not None:
            message, _ = found
            letter = try_decode_delivery(message.subject, message.data)
            if letter is not None:
                return NatsLeasedDelivery(self._js, message.reply, message.subject, letter)
            log.error("removed a message that is no letter", subject=message.subject)
            await self._js.connection.request(message.reply, b"+TERM")
        return None

    async def remove(self, owner: str, job_id: str | None = None) -> int:
        """By sequence, so that no byte stays."""
        return await self._js.secure_delete_subject(DELIVERIES.name, subjects.delivery_subjects(owner, job_id))

    async def _fetch_message(self, stream: str, consumer: str) -> tuple[Msg, AckSubject] | None:
        async with self._turns[consumer]:
            message = await self._js.connection.fetch(stream, consumer)
        got = None if message is None else parse_ack_subject(message.reply)
        return None if message is None or got is None else (message, got)
