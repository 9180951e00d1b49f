"""The connection: requests and their answers, subscriptions that outlive a break, and dialling again for ever."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from bus.answers import Answers, Asked
from bus.dial import dial, hang_up
from bus.errors import FOREIGN, raised
from bus.listeners import Heard, Listener, attach_all, subscribe
from bus.port import BusError, Denied, Unreachable
from bus.settings import BrokerSettings

ANSWER_S = 5
LOOK_S = 0.5
REDIAL_FIRST_S = 0.05
REDIAL_MOST_S = 2.0
# A message that came when its asker had gone: another may have it at once, not before its lease ends in 30 s.
NOBODY_ASKED = b'-NAK {"delay": 1000000000}'

# nats-py gives the broker's words in lower case.
_RIGHTS = {"publish": "publish to", "subscription": "subscribe to"}
_VIOLATION = re.compile(r'permissions violation for (publish|subscription) to "(.+?)"')

log = structlog.get_logger(__name__)


class Silent(Unreachable):
    """Nothing was answered in time, though the connection did not break. Never leaves this package."""


class Wire:
    """`set_up` is awaited on every new life of the connection before `went_up` and anybody else hears of it.

    `random_id`: what makes this connection's inbox its own. `trouble`: what keeps a broker that is there from being
    used, until somebody puts it right; empty while it is merely away.
    """

    def __init__(self, settings: BrokerSettings, inbox: str, random_id: str) -> None:
        self._settings = settings
        self._inbox = inbox
        self._prefix = f"{inbox}.{random_id}."
        self._answers = Answers(self._prefix)
        self._listeners: list[Listener] = []
        self._client: Client | None = None
        self._closed = anyio.Event()
        self._up = anyio.Event()
        self.trouble = ""
        self.set_up: list[Callable[[], Awaitable[None]]] = []
        self.went_up: list[Callable[[], None]] = []
        self.went_down: list[Callable[[], None]] = []

    @property
    def connected(self) -> bool:
        """Whether the connection stands and everything on it is set up."""
        return self._up.is_set()

    async def up(self) -> None:
        """Return when the connection stands."""
        await self._up.wait()

    async def open(self) -> None:
        """Dial once. Raises Unreachable or Denied."""
        closed = anyio.Event()

        async def on_close() -> None:
            closed.set()
            if self._closed is closed:
                self._drop()

        client = await dial(self._settings, self._inbox, self._erred, on_close)
        try:
            await self._set_up(client, closed)
        except BaseException:
            self._drop()
            await hang_up(client)
            raise
        self._up.set()
        for tell in self.went_up:
            tell()

    async def _set_up(self, client: Client, closed: anyio.Event) -> None:
        await subscribe(client, f"{self._prefix}*", self._answered)
        await attach_all(self._listeners, client)
        self._client, self._closed = client, closed
        await self.ping()  # the broker has read by now what we listen to: nothing said from here on passes us by
        for step in self.set_up:
            await step()
        if closed.is_set():
            raise Unreachable("the connection to the broker broke while it was set up")

    async def keep(self) -> None:
        """Dial again whenever the connection ends, without end; closes it when cancelled."""
        try:
            while True:
                await self._ended()
                log.warning("the broker is away, dialling until it answers", url=self._settings.url)
                await self._redial()
                log.info("the broker is back", url=self._settings.url)
        finally:
            client = self._client
            self._drop()
            if client is not None:
                await hang_up(client)

    async def _ended(self) -> None:
        """Return when the connection has ended. nats-py may fail while it closes, and then never says that it has."""
        while not self._closed.is_set():
            with anyio.move_on_after(LOOK_S):
                await self._closed.wait()
            client = self._client
            if client is not None and not client.is_connected:
                self._drop()
                await hang_up(client)
                return

    async def _redial(self) -> None:
        wait_s = REDIAL_FIRST_S
        while True:
            try:
                await self.open()
            except BusError as error:
                # Denied, too: a broker that is being set up anew may take us again.
                self._failed(error)
                await anyio.sleep(wait_s)
                wait_s = min(2 * wait_s, REDIAL_MOST_S)
            else:
                self.trouble = ""
                return

    def _failed(self, error: BusError) -> None:
        before, self.trouble = self.trouble, "" if isinstance(error, Unreachable) else str(error)
        tell = log.error if self.trouble not in {"", before} else log.debug
        tell("dialling failed", error=str(error))

    def _drop(self) -> None:
        """Nothing stands any more: whoever waits for an answer or a message is told."""
        self._client = None
        if self._up.is_set():
            self._up = anyio.Event()
            for tell in self.went_down:
                tell()
        gone = Unreachable("the connection to the broker broke: whether the last request was done is unknown")
        self._answers.fail(gone)
        for listener in self._listeners:
            listener.heard(gone)

    def _standing(self) -> Client:
        if self._client is None:
            raise Unreachable(f"the broker at {self._settings.url} is away: it is dialled until it answers")
        return self._client

    @asynccontextmanager
    async def listening(self, subject: str, heard: Heard, queue: str = "") -> AsyncIterator[None]:
        """`heard` gets every message of `subject`, Unreachable at each break, Denied where the user may not.

        Of all who listen with the same `queue`, one gets each message.
        """
        listener = Listener(subject, heard, queue)
        self._listeners.append(listener)
        try:
            if self._client is not None:
                await listener.attach(self._client)
            yield
        finally:
            self._listeners.remove(listener)
            await listener.detach()

    async def say(self, subject: str, data: bytes = b"") -> None:
        """A core publish: nobody answers, it may be lost. Raises Unreachable while the broker is away."""
        await anyio.lowlevel.checkpoint()  # nats-py only fills a buffer: a loop of these would starve all others
        try:
            await self._standing().publish(subject, data)
        except FOREIGN as error:
            raise raised(error, f"publishing to {subject}") from error

    def private_subject(self) -> str:
        """A new subject in our inbox for a consumer to deliver to; answers come one token higher."""
        return f"{self._prefix}to.{self._answers.token()}"

    async def ping(self) -> None:
        """Return when the broker has read all that was said before. Raises Unreachable.

        Twice, since nats-py 2.16 writes a PING past what it still holds back; its answer comes behind that being sent.
        """
        client = self._standing()
        try:
            await client.flush(ANSWER_S)
            await client.flush(ANSWER_S)
        except FOREIGN as error:
            raise raised(error, "pinging the broker") from error

    async def request(
        self, subject: str, data: bytes = b"", headers: Mapping[str, str] | None = None, within_s: float = ANSWER_S
    ) -> Msg:
        """The one answer. Raises Silent when none came in time, or Unreachable, Denied, TooLarge."""
        client = self._standing()
        with self._answers.expected(subject) as asked:
            return await _ask(client, asked, data, headers, within_s)

    async def fetch(self, stream: str, consumer: str, wait_s: float = 0.0) -> Msg | None:
        """The next message of a pull consumer, None when none comes within `wait_s`. One call a consumer at a time."""
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        client = self._standing()
        with self._answers.expected(subject, (stream, consumer)) as asked:
            how = b'"expires":%d' % int(wait_s * 10**9) if wait_s else b'"no_wait":true'
            message = await _ask(client, asked, b'{"batch":1,%b}' % how, within_s=ANSWER_S + wait_s)
        return None if status(message) else message

    async def _answered(self, message: Msg) -> None:
        if not self._answers.give(message) and message.reply:
            await self.say(message.reply, NOBODY_ASKED)

    async def _erred(self, error: Exception) -> None:
        """An asynchronous error: a denied publish is answered with nothing, so whoever waits for it is told here."""
        found = _VIOLATION.search(str(error).lower())
        if found is None:
            log.debug("the connection to the broker erred", error=str(error))
            return
        verb, subject = found.groups()
        denied = Denied(
            f"broker user {self._settings.user!r} may not {_RIGHTS[verb]} {subject}: correct its permissions"
        )
        log.error("the broker denied a right", user=self._settings.user, verb=verb, subject=subject)
        if verb == "publish" or subject.startswith(self._prefix.lower()):
            self._answers.fail(denied, subject if verb == "publish" else None)
        for listener in self._listeners:
            if verb == "subscription" and listener.subject.lower() == subject:
                listener.heard(denied)


def status(message: Msg) -> str | None:
    """The status code of an answer that is no message: `404`, `408`, `503`."""
    return message.headers.get("Status") if message.headers else None


async def _ask(
    client: Client, asked: Asked, data: bytes, headers: Mapping[str, str] | None = None, within_s: float = ANSWER_S
) -> Msg:
    try:
        await client.publish(asked.subject, data, asked.reply, dict(headers) if headers else None)
    except FOREIGN as error:
        raise raised(error, f"asking {asked.subject}") from error
    with anyio.move_on_after(within_s):
        await asked.answer
    if not asked.answer.done() or asked.answer.cancelled():
        what = f"{asked.subject} was not answered in {within_s:.0f} s"
        raise Silent(f"{what}: the broker is busy or elects a leader, try again")
    got = asked.answer.result()
    if isinstance(got, BusError):
        raise got
    return got
