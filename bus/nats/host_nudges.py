"""Nudges to hosts over core subjects, without storage or acknowledgement."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import structlog
from nats.aio.msg import Msg

from bus.interface import BrokerUnreachable, BusError
from bus.nats import subjects
from bus.nats.connection import NatsConnection
from schemas.events import DECODE_ERRORS
from schemas.ids import JobKey

log = structlog.get_logger(__name__)


class NatsHostNudges:
    """A nudge may be lost: the runner reads the records of its jobs again a little later anyway."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection

    async def nudge(self, host: str, key: JobKey) -> None:
        """Publish once, without an acknowledgement."""
        await self._connection.publish(subjects.nudge_subject(host), msgspec.json.encode(key))

    async def subscribe(self, host: str) -> AsyncIterator[JobKey]:
        """Yield across breaks of the connection. Raises BrokerDenied when the user may not subscribe for `host`."""
        messages: asyncio.Queue[Msg | BusError] = asyncio.Queue()
        async with self._connection.subscribed(subjects.nudge_subject(host), messages.put_nowait):
            while True:
                message = await messages.get()
                if isinstance(message, BrokerUnreachable):
                    continue
                if isinstance(message, BusError):
                    raise message
                try:
                    key = msgspec.json.decode(message.data, type=JobKey)
                except DECODE_ERRORS as error:
                    log.warning("nudge_unreadable", subject=message.subject, error=str(error))
                    continue
                yield key
