"""Making one nats-py connection. It never reconnects by itself: `bus.nats.connection` makes a new one instead.

nats-py's own reconnect would send what was buffered during the break (a write whose caller was told Unreachable), and
it closes for good on any -ERR but a permission's. A new client for every life of the connection has neither.
"""

import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import NoRespondersError

from bus.interface import BrokerDenied, BrokerUnreachable, BusError
from bus.nats.errors import CLIENT_ERROR_TYPES, from_client_error
from bus.nats.requests import PendingRequest, RequestMultiplexer
from bus.settings import BrokerSettings
from bus.tls_pinning import create_pinned_ssl_context

DIAL_TIMEOUT_S = 5.0
PING_INTERVAL_S = 5
LOST_PING_LIMIT = 2
CLOSE_TIMEOUT_S = 2.0
LOGIN_CHECK_TIMEOUT_S = 2.0


async def dial(
    settings: BrokerSettings,
    inbox: str,
    erred: Callable[[Exception], Awaitable[None]],
    closed: Callable[[], Awaitable[None]],
) -> Client:
    """A standing connection. Raises Unreachable, or Denied for a wrong user or password.

    `erred` hears of asynchronous errors, `closed` of the connection's end, once.
    """
    client = Client()
    doing = f"connecting to the broker at {settings.url}"
    try:
        with anyio.fail_after(DIAL_TIMEOUT_S):
            await client.connect(
                settings.url.split(","),
                user=settings.user or None,
                password=settings.password or None,
                tls=_tls_context(settings),
                inbox_prefix=inbox,
                name=settings.user,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=2,
                ping_interval=PING_INTERVAL_S,
                max_outstanding_pings=LOST_PING_LIMIT,
                pending_size=0,  # buffer nothing for a connection that is gone
                error_cb=erred,
                closed_cb=closed,
            )
    except ssl.SSLError as error:  # an OSError, too
        await close_client(client)
        raise BrokerUnreachable(f"{doing}: {error}: check pin, ca, cert and key of the broker settings") from error
    except CLIENT_ERROR_TYPES as error:
        await close_client(client)
        raise from_client_error(error, doing) from error
    except anyio.get_cancelled_exc_class():
        await close_client(client)
        raise
    return client


def _tls_context(settings: BrokerSettings) -> ssl.SSLContext | None:
    if not (settings.ca or settings.pin or settings.cert or "tls://" in settings.url):
        return None
    context = (
        create_pinned_ssl_context(Path(settings.pin))
        if settings.pin
        else ssl.create_default_context(cafile=settings.ca)
    )
    if settings.cert:
        context.load_cert_chain(settings.cert, settings.key)
    return context


async def close_client(client: Client) -> None:
    """Close, also when cancelled, and whatever state the client is in."""
    with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
        try:
            await client.close()
        except CLIENT_ERROR_TYPES:
            pass  # its goodbye failed
        finally:
            # One whose goodbye fails, or who is refused while it connects, leaves its socket open.
            if (transport := client._transport) is not None:  # noqa: SLF001 - nats-py has no other word for it
                transport.close()  # type: ignore[no-untyped-call]


async def can_log_in(settings: BrokerSettings, inbox: str, subject: str) -> bool:
    """Whether anybody answers what this user asks of `subject`. Raises Denied where it is not let in; Unreachable."""

    async def heard(*_: Exception) -> None:
        """The connection is only tried."""

    client = await dial(settings, inbox, heard, heard)
    try:
        await client.request(subject, timeout=LOGIN_CHECK_TIMEOUT_S)
    except NoRespondersError:
        return False
    except CLIENT_ERROR_TYPES as error:
        raise from_client_error(error, f"asking {subject}") from error
    finally:
        await close_client(client)
    return True


# MERGED bus/listeners.py: Subscriptions over all lives of a connection, and what a nats-py subscription needs.


MessageHandler = Callable[[Msg | BusError], None]


class ReconnectingSubscription:
    """`heard` gets messages, Unreachable at each break, Denied where the user may not listen."""

    def __init__(self, subject: str, heard: MessageHandler, queue: str = "") -> None:
        self.subject = subject
        self.on_message = heard
        self._queue = queue
        self._now: Subscription | None = None

    async def attach(self, client: Client) -> None:
        """Listen on this life of the connection."""

        async def heard(message: Msg) -> None:
            self.on_message(message)

        self._now = await subscribe_unlimited(client, self.subject, heard, self._queue)

    async def detach(self) -> None:
        """Listen no more, also when cancelled."""
        if self._now is None:
            return
        with anyio.CancelScope(shield=True):
            try:
                await self._now.unsubscribe()
            except CLIENT_ERROR_TYPES:
                return


async def attach_all_subscriptions(there: Sequence[ReconnectingSubscription], client: Client) -> None:
    """Attach them, and those who join them meanwhile; not those who leave."""
    attached: set[ReconnectingSubscription] = set()
    while (waiting := next((one for one in there if one not in attached), None)) is not None:
        await waiting.attach(client)
        attached.add(waiting)
        if waiting not in there:
            await waiting.detach()


async def subscribe_unlimited(
    client: Client, subject: str, heard: Callable[[Msg], Awaitable[None]], queue: str = ""
) -> Subscription:
    """Without limits: nats-py drops what is beyond them. A stream is bounded by the broker's flow control."""
    try:
        return await client.subscribe(subject, queue=queue, cb=heard, pending_msgs_limit=0, pending_bytes_limit=0)
    except CLIENT_ERROR_TYPES as error:
        raise from_client_error(error, f"subscribing to {subject}") from error


# MERGED bus/wire.py: The connection: requests and their answers, subscriptions that outlive a break, and dialling
# again for ever.


REQUEST_TIMEOUT_S = 5
CLOSED_CHECK_INTERVAL_S = 0.5
RECONNECT_BACKOFF_MIN_S = 0.05
RECONNECT_BACKOFF_MAX_S = 2.0
# A message that came when its asker had gone: another may have it at once, not before its lease ends in 30 s.
ORPHAN_MESSAGE_NAK = b'-NAK {"delay": 1000000000}'

# nats-py gives the broker's words in lower case.
_PERMISSION_VERBS = {"publish": "publish to", "subscription": "subscribe to"}
_VIOLATION = re.compile(r'permissions violation for (publish|subscription) to "(.+?)"')

log = structlog.get_logger(__name__)


class RequestTimeout(BrokerUnreachable):
    """Nothing was answered in time, though the connection did not break. Never leaves this package."""


class NatsConnection:
    """`set_up` is awaited on every new life of the connection before `went_up` and anybody else hears of it.

    `random_id`: what makes this connection's inbox its own. `trouble`: what keeps a broker that is there from being
    used, until somebody puts it right; empty while it is merely away.
    """

    def __init__(self, settings: BrokerSettings, inbox: str, random_id: str) -> None:
        self._settings = settings
        self._inbox = inbox
        self._prefix = f"{inbox}.{random_id}."
        self._answers = RequestMultiplexer(self._prefix)
        self._listeners: list[ReconnectingSubscription] = []
        self._client: Client | None = None
        self._closed = anyio.Event()
        self._up = anyio.Event()
        self.fault = ""
        self.setup_steps: list[Callable[[], Awaitable[None]]] = []
        self.on_connected: list[Callable[[], None]] = []
        self.on_disconnected: list[Callable[[], None]] = []

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands and everything on it is set up."""
        return self._up.is_set()

    async def wait_until_connected(self) -> None:
        """Return when the connection stands."""
        await self._up.wait()

    async def connect(self) -> None:
        """Dial once. Raises Unreachable or Denied."""
        closed = anyio.Event()

        async def on_close() -> None:
            closed.set()
            if self._closed is closed:
                self._on_disconnect()

        client = await dial(self._settings, self._inbox, self._on_async_error, on_close)
        try:
            await self._prepare_connection(client, closed)
        except BaseException:
            self._on_disconnect()
            await close_client(client)
            raise
        self._up.set()
        for tell in self.on_connected:
            tell()

    async def _prepare_connection(self, client: Client, closed: anyio.Event) -> None:
        await subscribe_unlimited(client, f"{self._prefix}*", self._on_reply)
        await attach_all_subscriptions(self._listeners, client)
        self._client, self._closed = client, closed
        await self.ping()  # the broker has read by now what we listen to: nothing said from here on passes us by
        for step in self.setup_steps:
            await step()
        if closed.is_set():
            raise BrokerUnreachable("the connection to the broker broke while it was set up")

    async def reconnect_forever(self) -> None:
        """Dial again whenever the connection ends, without end; closes it when cancelled."""
        try:
            while True:
                await self._wait_until_closed()
                log.warning("the broker is away, dialling until it answers", url=self._settings.url)
                await self._reconnect()
                log.info("the broker is back", url=self._settings.url)
        finally:
            client = self._client
            self._on_disconnect()
            if client is not None:
                await close_client(client)

    async def _wait_until_closed(self) -> None:
        """Return when the connection has ended. nats-py may fail while it closes, and then never says that it has."""
        while not self._closed.is_set():
            with anyio.move_on_after(CLOSED_CHECK_INTERVAL_S):
                await self._closed.wait()
            client = self._client
            if client is not None and not client.is_connected:
                self._on_disconnect()
                await close_client(client)
                return

    async def _reconnect(self) -> None:
        wait_s = RECONNECT_BACKOFF_MIN_S
        while True:
            try:
                await self.connect()
            except BusError as error:
                # Denied, too: a broker that is being set up anew may take us again.
                self._on_dial_failed(error)
                await anyio.sleep(wait_s)
                wait_s = min(2 * wait_s, RECONNECT_BACKOFF_MAX_S)
            else:
                self.fault = ""
                return

    def _on_dial_failed(self, error: BusError) -> None:
        before, self.fault = self.fault, "" if isinstance(error, BrokerUnreachable) else str(error)
        tell = log.error if self.fault not in {"", before} else log.debug
        tell("dialling failed", error=str(error))

    def _on_disconnect(self) -> None:
        """Nothing stands any more: whoever waits for an answer or a message is told."""
        self._client = None
        if self._up.is_set():
            self._up = anyio.Event()
            for tell in self.on_disconnected:
                tell()
        gone = BrokerUnreachable("the connection to the broker broke: whether the last request was done is unknown")
        self._answers.fail_requests(gone)
        for listener in self._listeners:
            listener.on_message(gone)

    def _require_client(self) -> Client:
        if self._client is None:
            raise BrokerUnreachable(f"the broker at {self._settings.url} is away: it is dialled until it answers")
        return self._client

    @asynccontextmanager
    async def subscribed(self, subject: str, heard: MessageHandler, queue: str = "") -> AsyncIterator[None]:
        """`heard` gets every message of `subject`, Unreachable at each break, Denied where the user may not.

        Of all who listen with the same `queue`, one gets each message.
        """
        listener = ReconnectingSubscription(subject, heard, queue)
        self._listeners.append(listener)
        try:
            if self._client is not None:
                await listener.attach(self._client)
            yield
        finally:
            self._listeners.remove(listener)
            await listener.detach()

    async def publish(self, subject: str, data: bytes = b"") -> None:
        """A core publish: nobody answers, it may be lost. Raises Unreachable while the broker is away."""
        await anyio.lowlevel.checkpoint()  # nats-py only fills a buffer: a loop of these would starve all others
        try:
            await self._require_client().publish(subject, data)
        except CLIENT_ERROR_TYPES as error:
            raise from_client_error(error, f"publishing to {subject}") from error

    def new_inbox_subject(self) -> str:
        """A new subject in our inbox for a consumer to deliver to; answers come one token higher."""
        return f"{self._prefix}to.{self._answers.new_token()}"

    async def ping(self) -> None:
        """Return when the broker has read all that was said before. Raises Unreachable.

        Twice, since nats-py 2.16 writes a PING past what it still holds back; its answer comes behind that being sent.
        """
        client = self._require_client()
        try:
            await client.flush(REQUEST_TIMEOUT_S)
            await client.flush(REQUEST_TIMEOUT_S)
        except CLIENT_ERROR_TYPES as error:
            raise from_client_error(error, "pinging the broker") from error

    async def request(
        self,
        subject: str,
        data: bytes = b"",
        headers: Mapping[str, str] | None = None,
        within_s: float = REQUEST_TIMEOUT_S,
    ) -> Msg:
        """The one answer. Raises Silent when none came in time, or Unreachable, Denied, TooLarge."""
        client = self._require_client()
        with self._answers.expect_reply(subject) as asked:
            return await _send_request(client, asked, data, headers, within_s)

    async def fetch(self, stream: str, consumer: str, wait_s: float = 0.0) -> Msg | None:
        """The next message of a pull consumer, None when none comes within `wait_s`. One call a consumer at a time."""
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        client = self._require_client()
        with self._answers.expect_reply(subject, (stream, consumer)) as asked:
            how = b'"expires":%d' % int(wait_s * 10**9) if wait_s else b'"no_wait":true'
            message = await _send_request(client, asked, b'{"batch":1,%b}' % how, within_s=REQUEST_TIMEOUT_S + wait_s)
        return None if reply_status(message) else message

    async def _on_reply(self, message: Msg) -> None:
        if not self._answers.deliver(message) and message.reply:
            await self.publish(message.reply, ORPHAN_MESSAGE_NAK)

    async def _on_async_error(self, error: Exception) -> None:
        """An asynchronous error: a denied publish is answered with nothing, so whoever waits for it is told here."""
        found = _VIOLATION.search(str(error).lower())
        if found is None:
            log.debug("the connection to the broker erred", error=str(error))
            return
        verb, subject = found.groups()
        denied = BrokerDenied(
            f"broker user {self._settings.user!r} may not {_PERMISSION_VERBS[verb]} {subject}: correct its permissions"
        )
        log.error("the broker denied a right", user=self._settings.user, verb=verb, subject=subject)
        if verb == "publish" or subject.startswith(self._prefix.lower()):
            self._answers.fail_requests(denied, subject if verb == "publish" else None)
        for listener in self._listeners:
            if verb == "subscription" and listener.subject.lower() == subject:
                listener.on_message(denied)


def reply_status(message: Msg) -> str | None:
    """The status code of an answer that is no message: `404`, `408`, `503`."""
    return message.headers.get("Status") if message.headers else None


async def _send_request(
    client: Client,
    asked: PendingRequest,
    data: bytes,
    headers: Mapping[str, str] | None = None,
    within_s: float = REQUEST_TIMEOUT_S,
) -> Msg:
    try:
        await client.publish(asked.subject, data, asked.reply, dict(headers) if headers else None)
    except CLIENT_ERROR_TYPES as error:
        raise from_client_error(error, f"asking {asked.subject}") from error
    with anyio.move_on_after(within_s):
        await asked.reply_future
    if not asked.reply_future.done() or asked.reply_future.cancelled():
        what = f"{asked.subject} was not answered in {within_s:.0f} s"
        raise RequestTimeout(f"{what}: the broker is busy or elects a leader, try again")
    got = asked.reply_future.result()
    if isinstance(got, BusError):
        raise got
    return got
