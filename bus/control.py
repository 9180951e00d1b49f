"""Nudges over core subjects."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import structlog
from nats.aio.msg import Msg

from bus import subjects
from bus.port import BusError, Unreachable
from bus.wire import Wire
from schemas.events import RUBBISH
from schemas.job import JobKey

log = structlog.get_logger(__name__)


class CoreControl:
    """May be lost: whoever is nudged re-reads STATE by itself, a little later."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def nudge(self, host: str, key: JobKey) -> None:
        """Say it once."""
        await self._wire.say(subjects.control(host), msgspec.json.encode(key))

    async def nudges(self, host: str) -> AsyncIterator[JobKey]:
        """Over every break. Raises Denied when the user may not listen for `host`."""
        heard: asyncio.Queue[Msg | BusError] = asyncio.Queue()
        async with self._wire.listening(subjects.control(host), heard.put_nowait):
            while True:
                message = await heard.get()
                if isinstance(message, Unreachable):
                    continue
                if isinstance(message, BusError):
                    raise message
                try:
                    key = msgspec.json.decode(message.data, type=JobKey)
                except RUBBISH as error:
                    log.warning("a nudge that names no job", subject=message.subject, error=str(error))
                    continue
                yield key
