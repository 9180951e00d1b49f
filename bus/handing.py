"""A message that a pull consumer handed out, and what may be said of it."""

import structlog

from bus.jetstream import JetStream
from bus.port import Unreachable
from bus.wire import Silent, status

ACK_S = 2.0

log = structlog.get_logger(__name__)


class Handing:
    """Every answer to the broker is itself answered, so that one that was lost in a break raises Unreachable.

    A broker that crashed right after handing a message out may have forgotten that it did; it then ignores what is said
    of that delivery and hands the message out again. To wait for an acknowledgement would be to wait for ever.
    """

    def __init__(self, js: JetStream, reply: str, name: str) -> None:
        self._js = js
        self._reply = reply
        self._name = name

    async def extend(self) -> None:
        """In progress."""
        await self._say(b"+WPI")

    async def done(self) -> None:
        """Acknowledged, and that confirmed."""
        await self._say(b"+ACK")

    async def later(self, delay_s: float) -> None:
        """Always with a delay: without one the broker hands it out again at once."""
        await self._say(b'-NAK {"delay": %d}' % max(1, int(delay_s * 10**9)))

    async def _say(self, answer: bytes) -> None:
        try:
            message = await self._js.wire.request(self._reply, answer, within_s=ACK_S)
        except Silent:
            await self._js.wire.ping()
            log.warning("the broker forgot a delivery, it comes again", name=self._name)
            return
        if status(message):
            raise Unreachable(f"{self._name}: its consumer does not answer; the broker is starting")
