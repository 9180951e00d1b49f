"""What waits to be sent to one socket: bounded, so that a client that does not read costs a known amount of memory."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from anyio import Event

MESSAGES = 1000
BYTES = 4 * 1024 * 1024


class Outbox:
    """Answers go before pushes; while a request is worked on its pushes wait, so that its answer comes first.

    Nothing is ever dropped: a push that finds no room calls `overflow`, which must close the socket. The client
    resumes behind the last push it got.
    """

    def __init__(self, overflow: Callable[[], object], messages: int = MESSAGES, size: int = BYTES) -> None:
        self._overflow = overflow
        self._messages, self._size = messages, size
        self._answers: deque[str] = deque()
        self._pushes: deque[str] = deque()
        self._waiting = 0  # characters
        self._holding = False
        self._filled = Event()
        self._emptied = Event()

    @property
    def relaxed(self) -> bool:
        """Whether more than half of the room is free."""
        return 2 * len(self._pushes) < self._messages and 2 * self._waiting < self._size

    def answer(self, text: str) -> None:
        """Send before any push. Whoever asks waits for `room` first, so answers need no bound of their own."""
        self._answers.append(text)
        self._added(text)

    def push(self, text: str) -> None:
        """Send behind what waits, if there is room."""
        if self._pushes and (len(self._pushes) >= self._messages or self._waiting + len(text) > self._size):
            self._overflow()
            return
        self._pushes.append(text)
        self._added(text)

    def _added(self, text: str) -> None:
        self._waiting += len(text)
        self._filled.set()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Let pushes wait inside the block."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
            self._filled.set()

    async def take(self) -> str:
        """The next to send; waits for one."""
        while True:
            if self._answers:
                return self._taken(self._answers)
            if self._pushes and not self._holding:
                return self._taken(self._pushes)
            self._filled = Event()
            await self._filled.wait()

    def _taken(self, line: deque[str]) -> str:
        text = line.popleft()
        self._waiting -= len(text)
        self._emptied.set()
        return text

    async def room(self) -> None:
        """Wait until it is `relaxed` and no crowd of answers waits."""
        while not self.relaxed or len(self._answers) > self._messages // 2:
            self._emptied = Event()
            await self._emptied.wait()
