"""Who waits for which answer. All answers of a connection come to one inbox; nobody subscribes to ask."""

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from nats.aio.msg import Msg

from bus.acks import handed
from bus.port import BusError

Consumer = tuple[str, str]  # a stream and its consumer


class Asked(NamedTuple):
    """`reply`: where the answer is to be sent; `answer`: the message, or why there is none."""

    subject: str
    reply: str
    answer: asyncio.Future[Msg | BusError]

    def settle(self, outcome: Msg | BusError) -> None:
        """The first outcome counts. An error is a value here: a future nobody reads must not complain."""
        if not self.answer.done():
            self.answer.set_result(outcome)


class Answers:
    """Replies to `prefix` and a token belong to whoever was given that token."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._tokens = itertools.count(1)
        self._asked: dict[str, Asked] = {}
        self._fetching: dict[Consumer, Asked] = {}

    def token(self) -> str:
        """A new one."""
        return f"{next(self._tokens):x}"

    @contextmanager
    def expected(self, subject: str, consumer: Consumer | None = None) -> Iterator[Asked]:
        """An answer to what is sent to `subject` now.

        A message that a consumer hands out comes under its own subject: it is known by `consumer`, which only one may
        ask at a time. A status comes under the token, like every other answer.
        """
        token = self.token()
        asked = Asked(subject, self._prefix + token, asyncio.get_running_loop().create_future())
        self._asked[token] = asked
        if consumer is not None:
            self._fetching[consumer] = asked
        try:
            yield asked
        finally:
            del self._asked[token]
            if consumer is not None:
                del self._fetching[consumer]

    def give(self, message: Msg) -> bool:
        """Give an answer to its asker; False when there is none any more."""
        if message.subject.startswith(self._prefix):
            asked = self._asked.get(message.subject.removeprefix(self._prefix))
        else:
            delivered = handed(message.reply)
            asked = self._fetching.get((delivered.stream, delivered.consumer)) if delivered else None
        if asked is None or asked.answer.done():
            return False
        asked.settle(message)
        return True

    def fail(self, error: BusError, subject: str | None = None) -> None:
        """Nobody will answer what was sent to `subject` (in lower case; None: to any)."""
        for asked in self._asked.values():
            if subject in (None, asked.subject.lower()):
                asked.settle(error)
