"""The connection to the broker: requests and replies, subscriptions that survive a break, and reconnecting without end.

It makes a new nats-py client for each connection and does not use nats-py's own reconnect. That would send what was
buffered during the break, such as a write whose caller was told BrokerUnreachable, and it closes for good on any -ERR
except that of a missing permission.
"""

import asyncio
import itertools
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import NoRespondersError, NoServersError

from bus.interface import BrokerDenied, BrokerUnreachable, BusError
from bus.nats.replies import CLIENT_ERROR_TYPES, PendingRequest, RequestMultiplexer, from_client_error
from bus.notifier import Notifier
from bus.settings import BrokerSettings, tls_context
from schemas.backoff import Backoff
from schemas.certificates import PinInvalid

DIAL_TIMEOUT_S = 5.0
PING_INTERVAL_S = 5
LOST_PING_LIMIT = 2
CLOSE_TIMEOUT_S = 2.0
LOGIN_CHECK_TIMEOUT_S = 2.0

log = structlog.get_logger(__name__)


async def dial(
    settings: BrokerSettings,
    inbox: str,
    on_error: Callable[[Exception], Awaitable[None]],
    on_close: Callable[[], Awaitable[None]],
) -> Client:
    """Connect once. Raises BrokerUnreachable, or BrokerDenied for a wrong user or password.

    `on_error` gets asynchronous errors; `on_close` is called once, when the connection ends.
    """
    client = Client()
    doing = f"connecting to the broker at {settings.url}"
    try:
        with anyio.fail_after(DIAL_TIMEOUT_S):
            await client.connect(
                settings.url.split(","),
                user=settings.user or None,
                password=settings.password or None,
                tls=tls_context(settings),
                inbox_prefix=inbox,
                name=settings.user,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=2,
                ping_interval=PING_INTERVAL_S,
                max_outstanding_pings=LOST_PING_LIMIT,
                pending_size=0,  # buffer nothing for a connection that is gone
                error_cb=on_error,
                closed_cb=on_close,
            )
    except (ssl.SSLError, PinInvalid) as error:  # SSLError is an OSError, too
        await close_client(client)
        raise BrokerUnreachable(f"{doing}: {error}: check pin, ca, cert and key of the broker settings") from error
    except NoServersError as error:
        await close_client(client)
        raise BrokerUnreachable(
            f"no broker answers at {settings.url}: start it, as with `nats-server -c nats.conf`, or correct broker.url "
            "(LAMPLIGHTER_BROKER__URL); `lamplighter up` starts a broker of its own"
        ) from error
    except CLIENT_ERROR_TYPES as error:
        await close_client(client)
        raise from_client_error(error, doing) from error
    except anyio.get_cancelled_exc_class():
        await close_client(client)
        raise
    return client


async def close_client(client: Client) -> None:
    """Close the client, also when this task is cancelled, whatever state the client is in."""
    with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
        try:
            await client.close()
        except CLIENT_ERROR_TYPES:
            pass  # the last flush failed
        finally:
            # nats-py leaves the socket open when the last flush fails, or when the login is refused.
            if (transport := client._transport) is not None:  # noqa: SLF001 - nats-py has no public way
                transport.close()  # type: ignore[no-untyped-call]


async def can_log_in(settings: BrokerSettings, inbox: str, subject: str) -> bool:
    """Return whether a request of this user to `subject` is answered. Raises BrokerDenied when the login is refused.

    Raises BrokerUnreachable too.
    """

    async def ignore(*_: Exception) -> None:
        """Ignore errors and the end of a connection that is only a test."""

    client = await dial(settings, inbox, ignore, ignore)
    try:
        await client.request(subject, timeout=LOGIN_CHECK_TIMEOUT_S)
    except NoRespondersError:
        return False
    except CLIENT_ERROR_TYPES as error:
        raise from_client_error(error, f"asking {subject}") from error
    finally:
        await close_client(client)
    return True


MessageHandler = Callable[[Msg | BusError], None]


class ReconnectingSubscription:
    """A subscription across all connections.

    `on_message` gets messages, BrokerUnreachable at each break, and BrokerDenied.
    """

    def __init__(self, subject: str, on_message: MessageHandler, queue: str = "") -> None:
        self.subject = subject
        self.on_message = on_message
        self._queue = queue
        self._now: Subscription | None = None

    async def attach(self, client: Client) -> None:
        """Subscribe on the current connection."""

        async def forward(message: Msg) -> None:
            self.on_message(message)

        self._now = await subscribe_unlimited(client, self.subject, forward, self._queue)

    async def detach(self) -> None:
        """Unsubscribe, also when this task is cancelled."""
        if self._now is None:
            return
        with anyio.CancelScope(shield=True):
            try:
                await self._now.unsubscribe()
            except CLIENT_ERROR_TYPES:
                return


async def attach_all_subscriptions(subscriptions: Sequence[ReconnectingSubscription], client: Client) -> None:
    """Attach the subscriptions, those added in the meantime too, but not those removed in the meantime."""
    attached: set[ReconnectingSubscription] = set()
    while (waiting := next((one for one in subscriptions if one not in attached), None)) is not None:
        await waiting.attach(client)
        attached.add(waiting)
        if waiting not in subscriptions:
            await waiting.detach()


async def subscribe_unlimited(
    client: Client, subject: str, on_message: Callable[[Msg], Awaitable[None]], queue: str = ""
) -> Subscription:
    """Subscribe without limits: nats-py drops messages beyond them. The broker's flow control bounds a stream."""
    try:
        return await client.subscribe(subject, queue=queue, cb=on_message, pending_msgs_limit=0, pending_bytes_limit=0)
    except CLIENT_ERROR_TYPES as error:
        raise from_client_error(error, f"subscribing to {subject}") from error


REQUEST_TIMEOUT_S = 5
CLOSED_CHECK_INTERVAL_S = 0.5
RECONNECT_BACKOFF = Backoff(first_s=0.05, limit_s=2.0)
# For a message that arrives after its request was given up: another runner may have it after a second, instead of
# after the 30 s of its lease.
ORPHAN_MESSAGE_NAK = b'-NAK {"delay": 1000000000}'

# nats-py gives the broker's text in lower case.
_PERMISSION_VERBS = {"publish": "publish to", "subscription": "subscribe to"}
_VIOLATION = re.compile(r'permissions violation for (publish|subscription) to "(.+?)"')


class RequestTimeout(BrokerUnreachable):
    """No reply came in time, although the connection did not break. Never leaves this package."""


class NatsConnection:
    """One user's connection. `setup_steps` are awaited on each new connection, before `on_connected` is called.

    `random_id` makes the inbox of this connection unique. `fault` says why the broker refuses this user; it is empty
    while the broker is only away.
    """

    def __init__(self, settings: BrokerSettings, inbox: str, random_id: str) -> None:
        self._settings = settings
        self._inbox = inbox
        self._prefix = f"{inbox}.{random_id}."
        self._requests = RequestMultiplexer(self._prefix)
        self._subscriptions: list[ReconnectingSubscription] = []
        self._client: Client | None = None
        self._closed = anyio.Event()
        self._is_up = False
        self._changed = Notifier()
        self.fault = ""
        self.setup_steps: list[Callable[[], Awaitable[None]]] = []
        self.on_connected: list[Callable[[], None]] = []
        self.on_disconnected: list[Callable[[], None]] = []

    @property
    def is_connected(self) -> bool:
        """Return whether the connection is up and everything on it is set up."""
        return self._is_up

    async def wait_until_connected(self) -> None:
        """Return as soon as the connection is up."""
        await self._changed.wait_until(lambda: self._is_up)

    async def connect(self) -> None:
        """Connect once. Raises BrokerUnreachable or BrokerDenied."""
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
        self._is_up = True
        self._changed.notify()
        for callback in self.on_connected:
            callback()

    async def _prepare_connection(self, client: Client, closed: anyio.Event) -> None:
        await subscribe_unlimited(client, f"{self._prefix}*", self._on_reply)
        await attach_all_subscriptions(self._subscriptions, client)
        self._client, self._closed = client, closed
        await self.ping()  # the broker has processed our subscriptions by now, so we miss nothing from here on
        for step in self.setup_steps:
            await step()
        if closed.is_set():
            raise BrokerUnreachable("the connection to the broker broke while it was set up")

    async def reconnect_forever(self) -> None:
        """Connect again whenever the connection ends; close it when cancelled."""
        try:
            while True:
                await self._wait_until_closed()
                log.warning("broker_lost", url=self._settings.url)
                await self._reconnect()
                log.info("broker_reconnected", url=self._settings.url)
        finally:
            client = self._client
            self._on_disconnect()
            if client is not None:
                await close_client(client)

    async def _wait_until_closed(self) -> None:
        """Return when the connection has ended.

        When nats-py fails to close, it does not call `on_close`, so check too.
        """
        while not self._closed.is_set():
            with anyio.move_on_after(CLOSED_CHECK_INTERVAL_S):
                await self._closed.wait()
            client = self._client
            if client is not None and not client.is_connected:
                self._on_disconnect()
                await close_client(client)
                return

    async def _reconnect(self) -> None:
        for failures in itertools.count():
            try:
                await self.connect()
            except BusError as error:
                # Also after BrokerDenied: the broker may be in the middle of a new setup.
                self._on_dial_failed(error)
                await anyio.sleep(RECONNECT_BACKOFF.delay_s(failures))
            else:
                self.fault = ""
                return

    def _on_dial_failed(self, error: BusError) -> None:
        before, self.fault = self.fault, "" if isinstance(error, BrokerUnreachable) else str(error)
        write = log.error if self.fault not in {"", before} else log.debug
        write("broker_connection_failed", error=str(error))

    def _on_disconnect(self) -> None:
        """Fail all pending requests, and tell all subscriptions."""
        self._client = None
        if self._is_up:
            self._is_up = False
            for callback in self.on_disconnected:
                callback()
        lost = BrokerUnreachable("the connection to the broker broke: it is unknown whether the last request was done")
        self._requests.fail_requests(lost)
        for subscription in self._subscriptions:
            subscription.on_message(lost)

    def _require_client(self) -> Client:
        if self._client is None:
            raise BrokerUnreachable(f"the broker at {self._settings.url} does not answer: trying again until it does")
        return self._client

    @asynccontextmanager
    async def subscribed(self, subject: str, on_message: MessageHandler, queue: str = "") -> AsyncIterator[None]:
        """Call `on_message` with each message of `subject`, BrokerUnreachable at each break, and BrokerDenied.

        Of all subscribers with the same `queue`, one gets each message.
        """
        subscription = ReconnectingSubscription(subject, on_message, queue)
        self._subscriptions.append(subscription)
        try:
            if self._client is not None:
                await subscription.attach(self._client)
            yield
        finally:
            self._subscriptions.remove(subscription)
            await subscription.detach()

    async def publish(self, subject: str, data: bytes = b"") -> None:
        """Publish to a core subject, without an acknowledgement. Raises BrokerUnreachable while the broker is away."""
        await anyio.lowlevel.checkpoint()  # nats-py only fills a buffer: a loop of publishes would starve other tasks
        try:
            await self._require_client().publish(subject, data)
        except CLIENT_ERROR_TYPES as error:
            raise from_client_error(error, f"publishing to {subject}") from error

    def new_inbox_subject(self) -> str:
        """Return a new subject in our inbox for a consumer to deliver to; it has one token more than a reply's."""
        return f"{self._prefix}to.{self._requests.new_token()}"

    async def ping(self) -> None:
        """Return when the broker has processed all that was sent before. Raises BrokerUnreachable.

        Flush twice, because nats-py 2.16 writes a PING before the data that it still holds back. The second PING
        follows that data.
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
        """Return the reply.

        Raises RequestTimeout when none came in time; BrokerUnreachable, BrokerDenied, MessageTooLarge.
        """
        client = self._require_client()
        with self._requests.expect_reply(subject) as pending:
            return await _send_request(client, pending, data, headers, within_s)

    async def fetch(self, stream: str, consumer: str, wait_s: float = 0.0) -> Msg | None:
        """Return the next message of a pull consumer, None when none comes within `wait_s`.

        One call a consumer at a time.
        """
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        client = self._require_client()
        with self._requests.expect_reply(subject, (stream, consumer)) as pending:
            options = b'"expires":%d' % int(wait_s * 10**9) if wait_s else b'"no_wait":true'
            body = b'{"batch":1,%b}' % options
            message = await _send_request(client, pending, body, within_s=REQUEST_TIMEOUT_S + wait_s)
        return None if reply_status(message) else message

    async def _on_reply(self, message: Msg) -> None:
        if not self._requests.deliver(message) and message.reply:
            await self.publish(message.reply, ORPHAN_MESSAGE_NAK)

    async def _on_async_error(self, error: Exception) -> None:
        """Fail the requests and subscriptions that a permission violation concerns: the broker sends them no reply."""
        found = _VIOLATION.search(str(error).lower())
        if found is None:
            log.debug("broker_connection_error_received", error=str(error))
            return
        verb, subject = found.groups()
        denied = BrokerDenied(
            f"broker user {self._settings.user!r} may not {_PERMISSION_VERBS[verb]} {subject}: correct its permissions"
        )
        log.error("broker_permission_denied", user=self._settings.user, verb=verb, subject=subject)
        if verb == "publish" or subject.startswith(self._prefix.lower()):
            self._requests.fail_requests(denied, subject if verb == "publish" else None)
        for subscription in self._subscriptions:
            if verb == "subscription" and subscription.subject.lower() == subject:
                subscription.on_message(denied)


def reply_status(message: Msg) -> str | None:
    """Return the status code of a reply that is not a message, such as `404`, `408` or `503`."""
    return message.headers.get("Status") if message.headers else None


async def _send_request(
    client: Client,
    pending: PendingRequest,
    data: bytes,
    headers: Mapping[str, str] | None = None,
    within_s: float = REQUEST_TIMEOUT_S,
) -> Msg:
    try:
        await client.publish(pending.subject, data, pending.reply, dict(headers) if headers else None)
    except CLIENT_ERROR_TYPES as error:
        raise from_client_error(error, f"requesting {pending.subject}") from error
    # A timer of the event loop: a cancel scope for each request takes longer than all else here.
    timer = asyncio.get_running_loop().call_later(within_s, pending.resolve, None)
    try:
        reply = await pending.reply_future
    finally:
        timer.cancel()
    if reply is None:
        what = f"{pending.subject} was not answered in {within_s:.0f} s"
        raise RequestTimeout(f"{what}: the broker is busy or elects a leader: try again")
    if isinstance(reply, BusError):
        raise reply
    return reply
