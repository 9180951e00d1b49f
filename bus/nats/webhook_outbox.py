"""The webhook outbox over the broker: a durable consumer on STATE, and DELIVERIES with another.

All edges share both.
"""

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

    def __init__(self, jetstream: JetStreamClient, message: Msg, ack: AckSubject, value: T) -> None:
        super().__init__(jetstream, message.reply, message.subject)
        self._ack = ack
        self._value = value

    @property
    def value(self) -> T:
        """The message, decoded to the item's type."""
        return self._value

    @property
    def is_last(self) -> bool:
        """As the broker counted the pending messages of the consumer."""
        return not self._ack.pending


class NatsLeasedDelivery(NatsLeasedItem[WebhookDelivery]):
    """A message of DELIVERIES. It holds the input and output of a job."""

    async def ack(self) -> None:
        """Erase the message before the ack: after an ack alone its bytes would stay on the broker's disk."""
        await self._jetstream.secure_delete_message(DELIVERIES.name, self._ack.sequence)
        await super().ack()


class NatsWebhookOutbox:
    """The outbox.

    Only one task fetches from a consumer at a time, because a delivered message does not name its request.
    """

    def __init__(self, jetstream: JetStreamClient) -> None:
        self._jetstream = jetstream
        self._turns: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)

    async def next_state_change(self) -> LeasedItem[WebhookDelivery | None] | None:
        """Fetch the next message of STATE from the durable consumer of webhooks."""
        found = await self._fetch_message(STATE.name, WEBHOOK_CURSOR_CONSUMER)
        if found is None:
            return None
        message, ack = found
        record = try_decode_record(message.data)
        delivery = None if record is None else WebhookDelivery(ack.sequence, record)
        return NatsLeasedItem(self._jetstream, message, ack, delivery)

    async def enqueue(self, delivery: WebhookDelivery) -> None:
        """Publish with the subject as the Msg-Id."""
        place = subjects.DeliverySubject(delivery.revision, delivery.replay, delivery.webhook)
        subject = subjects.delivery_subject(delivery.record.job.key, place)
        await self._jetstream.publish(subject, encode_record(delivery.record), message_id=subject)

    async def fetch(self) -> LeasedItem[WebhookDelivery] | None:
        """Fetch one delivery; remove a message that is not a delivery."""
        while (found := await self._fetch_message(DELIVERIES.name, WEBHOOK_DELIVERY_CONSUMER)) is not None:
            message, ack = found
            delivery = try_decode_delivery(message.subject, message.data)
            if delivery is not None:
                return NatsLeasedDelivery(self._jetstream, message, ack, delivery)
            log.error("unreadable_delivery_removed", subject=message.subject)
            await self._jetstream.connection.request(message.reply, b"+TERM")
        return None

    async def remove(self, owner: str, job_id: str | None = None) -> int:
        """Overwrite the messages one by one."""
        return await self._jetstream.secure_delete_subject(DELIVERIES.name, subjects.delivery_subjects(owner, job_id))

    async def _fetch_message(self, stream: str, consumer: str) -> tuple[Msg, AckSubject] | None:
        async with self._turns[consumer]:
            message = await self._jetstream.connection.fetch(stream, consumer)
        ack = None if message is None else parse_ack_subject(message.reply)
        return None if message is None or ack is None else (message, ack)
