"""The outbox on the broker: a shared durable consumer on STATE, and DELIVERIES with another."""

from collections import defaultdict
from typing import Generic, TypeVar

import anyio
import structlog
from nats.aio.msg import Msg

from bus import subjects
from bus.acks import Handed, handed
from bus.handing import Handing
from bus.jetstream import JetStream
from bus.outgoing import Held, Letter
from bus.records import read_letter, readable
from bus.topology import DELIVERIES, DELIVERING, JUDGING, STATE
from schemas.events import encode

T = TypeVar("T")

log = structlog.get_logger(__name__)


class HeldMessage(Handing, Generic[T]):
    """A message of one of the two consumers."""

    def __init__(self, js: JetStream, reply: str, name: str, value: T) -> None:
        super().__init__(js, reply, name)
        self._value = value

    @property
    def value(self) -> T:
        """What it says."""
        return self._value


class HeldLetter(HeldMessage[Letter]):
    """A letter; it holds all that the job was given."""

    async def done(self) -> None:
        """Erased first: what is only acknowledged stays on the broker's disk."""
        got = handed(self._reply)
        if got is not None:
            await self._js.overwrite(DELIVERIES.name, got.sequence)
        await super().done()


class StreamOutbox:
    """Each consumer is asked by one task at a time: a message without a token must find its asker."""

    def __init__(self, js: JetStream) -> None:
        self._js = js
        self._turns: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)

    async def judge(self) -> Held[Letter | None] | None:
        """One state."""
        found = await self._fetch(STATE.name, JUDGING)
        if found is None:
            return None
        message, got = found
        recorded = readable(message.data)
        letter = None if recorded is None else Letter(got.sequence, recorded)
        return HeldMessage(self._js, message.reply, message.subject, letter)

    async def post(self, letter: Letter) -> None:
        """The name of the letter is its Msg-Id."""
        subject = subjects.letter(letter.recorded.job.key, letter.revision, letter.replay)
        await self._js.write(subject, encode(letter.recorded), message_id=subject)

    async def take(self) -> Held[Letter] | None:
        """One letter; what is none is removed."""
        while (found := await self._fetch(DELIVERIES.name, DELIVERING)) is not None:
            message, _ = found
            letter = read_letter(message.subject, message.data)
            if letter is not None:
                return HeldLetter(self._js, message.reply, message.subject, letter)
            log.error("removed a message that is no letter", subject=message.subject)
            await self._js.wire.request(message.reply, b"+TERM")
        return None

    async def withdraw(self, owner: str, job_id: str | None = None) -> int:
        """By sequence, so that no byte stays."""
        return await self._js.erase(DELIVERIES.name, subjects.letters(owner, job_id))

    async def _fetch(self, stream: str, consumer: str) -> tuple[Msg, Handed] | None:
        async with self._turns[consumer]:
            message = await self._js.wire.fetch(stream, consumer)
        got = None if message is None else handed(message.reply)
        return None if message is None or got is None else (message, got)
