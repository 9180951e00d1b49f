"""The connection: requests and their answers, subscriptions that outlive a break, and dialling again for ever."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import anyio
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from bus.answers import Answers, Consumer
from bus.dial import dial, hang_up
from bus.errors import FOREIGN, raised
from bus.port import BusError, Denied, Unreachable
from bus.settings import BrokerSettings

ANSWER_S = 5.0
REDIAL_FIRST_S = 0.05
REDIAL_MOST_S = 2.0
# A message that came when its asker had gone: another may have it at once, not before its lease ends in 30 s.
NOBODY_ASKED = b'-NAK {"delay": 1000000000}'

Heard = Callable[[Msg | BusError], None]

# nats-py gives the broker's words in lower case.
_RIGHTS = {"publish": "publish to", "subscription": "subscribe to"}
_VIOLATION = re.compile(r'permissions violation for (publish|subscription) to "(.+?)"')

log = structlog.get_logger(__name__)


class _Listener:
    """A subscription over all lives of the connection."""

    def __init__(self, subject: str, heard: Heard) -> None:
        self.subject = subject
        self.heard = heard
        self.now: Subscription | None = None


class Wire:
    """`set_up` is awaited on every new life of the connection before `went_up` and anybody else hears of it.

    `random_id`: what makes this connection's inbox its own.
    """

    def __init__(self, settings: BrokerSettings, inbox: str, random_id: str) -> None:
        self._settings = settings
        self._inbox = inbox
        self._prefix = f"{inbox}.{random_id}."
        self._answers = Answers(self._prefix)
        self._listeners: list[_Listener] = []
        self._client: Client | None = None
        self._closed = anyio.Event()
        self._up = anyio.Event()
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
        await _subscribe(client, f"{self._prefix}*", self._answered)
        for listener in self._listeners:
            await _attach(client, listener)
        self._client, self._closed = client, closed
        for step in self.set_up:
            await step()
        if closed.is_set():
            raise Unreachable("the connection to the broker broke while it was set up")

    async def keep(self) -> None:
        """Dial again whenever the connection ends, without end; closes it when cancelled."""
        try:
            while True:
                await self._closed.wait()
                log.warning("the broker is away, dialling until it answers", url=self._settings.url)
                await self._redial()
                log.info("the broker is back", url=self._settings.url)
        finally:
            client = self._client
            self._drop()
            if client is not None:
                await hang_up(client)

    async def _redial(self) -> None:
        wait_s = REDIAL_FIRST_S
        while True:
            try:
                await self.open()
            except BusError as error:
                # Denied, too: a broker that is being set up anew may take us again.
                log.debug("dialling failed", error=str(error))
                await anyio.sleep(wait_s)
                wait_s = min(2 * wait_s, REDIAL_MOST_S)
            else:
                return

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
    async def listening(self, subject: str, heard: Heard) -> AsyncIterator[None]:
        """`heard` gets every message of `subject`, Unreachable at each break, Denied where the user may not."""
        listener = _Listener(subject, heard)
        self._listeners.append(listener)
        try:
            if self._client is not None:
                await _attach(self._client, listener)
            yield
        finally:
            self._listeners.remove(listener)
            if self._client is not None and listener.now is not None:
                await _detach(listener.now)

    async def say(self, subject: str, data: bytes = b"") -> None:
        """A core publish: nobody answers, it may be lost. Raises Unreachable while the broker is away."""
        try:
            await self._standing().publish(subject, data)
        except FOREIGN as error:
            raise raised(error, f"publishing to {subject}") from error

    def private_subject(self) -> str:
        """A new subject in our inbox for a consumer to deliver to; answers come one token higher."""
        return f"{self._prefix}to.{self._answers.token()}"

    async def request(self, subject: str, data: bytes = b"", headers: Mapping[str, str] | None = None) -> Msg:
        """The one answer. Raises Unreachable after 5 s without one, or Denied, TooLarge."""
        return await self._ask(subject, data, headers)

    async def fetch(self, stream: str, consumer: str) -> Msg | None:
        """The next message of a pull consumer, None when there is none now. One call a consumer at a time."""
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        message = await self._ask(subject, b'{"batch":1,"no_wait":true}', None, (stream, consumer))
        return None if status(message) else message

    async def _ask(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None, consumer: Consumer | None = None
    ) -> Msg:
        client = self._standing()
        with self._answers.expected(subject, consumer) as asked:
            try:
                with anyio.fail_after(ANSWER_S):
                    await client.publish(subject, data, asked.reply, dict(headers) if headers else None)
                    got = await asked.answer
            except FOREIGN as error:
                raise raised(error, f"asking {subject}") from error
        if isinstance(got, BusError):
            raise got
        return got

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


async def _subscribe(client: Client, subject: str, heard: Callable[[Msg], Awaitable[None]]) -> Subscription:
    """Without limits: nats-py drops what is beyond them. A stream is bounded by the broker's flow control."""
    try:
        return await client.subscribe(subject, cb=heard, pending_msgs_limit=0, pending_bytes_limit=0)
    except FOREIGN as error:
        raise raised(error, f"subscribing to {subject}") from error


async def _attach(client: Client, listener: _Listener) -> None:
    async def heard(message: Msg) -> None:
        listener.heard(message)

    listener.now = await _subscribe(client, listener.subject, heard)


async def _detach(subscription: Subscription) -> None:
    with anyio.CancelScope(shield=True):
        try:
            await subscription.unsubscribe()
        except FOREIGN:
            return
