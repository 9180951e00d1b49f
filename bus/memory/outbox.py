"""The outbox in memory."""

from typing import Generic, TypeVar

from bus import subjects
from bus.memory.link import MemoryLink
from bus.memory.log import Clock, Log, Message
from bus.outgoing import Held, Letter
from bus.records import read_letter, readable
from schemas.events import encode

HELD_S = 60.0

T = TypeVar("T")


class Tray:
    """Messages of a log, each handed out to one holder at a time, from behind `cursor` on."""

    def __init__(self, clock: Clock, log: Log, prefix: str) -> None:
        self._clock = clock
        self._prefix = prefix
        self._cursor = 0
        self.log = log
        self.due: dict[int, float] = {}

    def next(self) -> int | None:
        """The first message that is due, held by the asker from now on."""
        now = self._clock()
        for message in self.log.behind(self._cursor, self._prefix):
            self._cursor = message.sequence
            self.due[message.sequence] = now
        ready = next((sequence for sequence, due in self.due.items() if due <= now), None)
        if ready is not None:
            self.put_off(ready, HELD_S)
        return ready

    def put_off(self, sequence: int, seconds: float) -> None:
        """Hand it out again in `seconds`, behind what is due by then."""
        if self.due.pop(sequence, None) is not None:
            self.due[sequence] = self._clock() + seconds


class Mail:
    """What every connection shares: STATE as it is judged, and DELIVERIES."""

    def __init__(self, clock: Clock, state: Log, letters: Log) -> None:
        self.states = Tray(clock, state, "$KV.STATE.")
        self.letters = Tray(clock, letters, "delivery.")


class MemoryHeld(Generic[T]):
    """A message in somebody's hands."""

    def __init__(self, link: MemoryLink, tray: Tray, sequence: int, value: T, *, erase: bool) -> None:
        self._link = link
        self._tray = tray
        self._sequence = sequence
        self._value = value
        self._erase = erase

    @property
    def value(self) -> T:
        """What it says."""
        return self._value

    async def done(self) -> None:
        """Gone for good."""
        await self._link.reach()
        self._tray.due.pop(self._sequence, None)
        if self._erase:
            self._tray.log.erase(self._sequence)

    async def later(self, delay_s: float) -> None:
        """Again in `delay_s`."""
        await self._link.reach()
        self._tray.put_off(self._sequence, delay_s)


class MemoryOutbox:
    """States to judge, letters to send."""

    def __init__(self, link: MemoryLink, mail: Mail) -> None:
        self._link = link
        self._mail = mail

    async def judge(self) -> Held[Letter | None] | None:
        """The next state."""
        found = await self._next(self._mail.states)
        if found is None:
            return None
        sequence, message = found
        recorded = readable(message.data)
        letter = None if recorded is None else Letter(sequence, recorded)
        return MemoryHeld(self._link, self._mail.states, sequence, letter, erase=False)

    async def post(self, letter: Letter) -> None:
        """Keep it."""
        await self._link.reach()
        subject = subjects.letter(letter.recorded.job.key, letter.revision, letter.replay)
        self._mail.letters.log.append(subject, encode(letter.recorded), message_id=subject)

    async def take(self) -> Held[Letter] | None:
        """The next letter."""
        found = await self._next(self._mail.letters)
        if found is None:
            return None
        sequence, message = found
        letter = read_letter(message.subject, message.data)
        if letter is None:
            raise AssertionError("nobody writes anything else there")
        return MemoryHeld(self._link, self._mail.letters, sequence, letter, erase=True)

    async def _next(self, tray: Tray) -> tuple[int, Message] | None:
        await self._link.reach()
        while (sequence := tray.next()) is not None:
            held = tray.log.get(sequence)
            if held is not None:
                return sequence, held
            tray.due.pop(sequence, None)  # rolled out of the log, or withdrawn
        return None

    async def withdraw(self, owner: str, job_id: str | None = None) -> int:
        """Erase what lies there of it."""
        await self._link.reach()
        prefix = subjects.letters(owner, job_id).removesuffix(">").removesuffix("*.")
        found = self._mail.letters.log.behind(0, prefix)
        for message in found:
            self._mail.letters.log.erase(message.sequence)
        return len(found)
