"""AUDIT over the broker: the stream behind the bucket of that name, read by sequence, from the newest back.

Earlier releases wrote the same rows through the bucket, so theirs are read as ours, and they read ours.
"""

import msgspec

from bus.interface import AuditEntry, AuditPage, RevisionConflict, RowUnreadable
from bus.nats import subjects
from bus.nats.codec import decode_row, log_unreadable_row
from bus.nats.jetstream import JetStreamClient
from bus.nats.ordered_consumer import ConsumedMessage, ReadRequest, open_consumer
from bus.nats.topology import AUDIT
from schemas.installation import AuditEvent

_decoder = msgspec.json.Decoder(AuditEvent)


class NatsAuditStream:
    """AUDIT. The subject of an event is its id, so that a second write of it is refused."""

    def __init__(self, jetstream: JetStreamClient) -> None:
        self._jetstream = jetstream

    async def append(self, event_id: str, event: AuditEvent) -> bool:
        """Publish with the expectation that the subject is empty."""
        try:
            subject = subjects.row_subject(AUDIT.name, event_id)
            await self._jetstream.publish(subject, msgspec.json.encode(event), expect=0)
        except RevisionConflict:
            return False
        return True

    async def page(self, before: int | None, span: int) -> AuditPage:
        """Read through a consumer that starts `span` sequences before `before`."""
        state = (await self._jetstream.stream_info(AUDIT.stream)).state
        end = state.last_seq + 1 if before is None else min(before, state.last_seq + 1)
        first = max(state.first_seq, 1)  # 0 in a stream that never held anything
        start = max(first, end - span)
        entries = [entry for item in await self._read(start, end) if (entry := _decode_entry(item))]
        return AuditPage(tuple(reversed(entries)), start if start > first else None)

    async def _read(self, start: int, end: int) -> list[ConsumedMessage]:
        """Return the messages with a sequence from `start` to below `end`."""
        items: list[ConsumedMessage] = []
        if start >= end:
            return items
        reading = ReadRequest(AUDIT.stream, subjects.row_subject(AUDIT.name, ">"), after_sequence=start - 1)
        async with open_consumer(self._jetstream, reading) as consumer:
            pending = consumer.pending
            while pending:
                item = await consumer.next()
                if item.sequence >= end:
                    break
                items.append(item)
                pending = item.pending
        return items


def _decode_entry(item: ConsumedMessage) -> AuditEntry | None:
    try:
        return AuditEntry(item.sequence, decode_row(_decoder, item.subject, item.data))
    except RowUnreadable as error:
        log_unreadable_row(error)
        return None
