"""Nudges over core subjects."""

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
    """May be lost: whoever is nudged re-reads STATE by itself, a little later."""

    def __init__(self, wire: NatsConnection) -> None:
        self._wire = wire

    async def nudge(self, host: str, key: JobKey) -> None:
        """Say it once."""
        await self._wire.publish(subjects.nudge_subject(host), msgspec.json.encode(key))

    async def subscribe(self, host: str) -> AsyncIterator[JobKey]:
        """Over every break. Raises Denied when the user may not listen for `host`."""
        heard: asyncio.Queue[Msg | BusError] = asyncio.Queue()
        async with self._wire.subscribed(subjects.nudge_subject(host), heard.put_nowait):
            while True:
                message = await heard.get()
                if isinstance(message, BrokerUnreachable):
                    continue
                if isinstance(message, BusError):
                    raise message
                try:
                    key = msgspec.json.decode(message.data, type=JobKey)
                except DECODE_ERRORS as error:
                    log.warning("a nudge that names no job", subject=message.subject, error=str(error))
                    continue
                yield key
