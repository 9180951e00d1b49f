"""Making one nats-py connection. It never reconnects by itself: `bus.wire` makes a new one instead.

nats-py's own reconnect would send what was buffered during the break (a write whose caller was told Unreachable), and
it closes for good on any -ERR but a permission's. A new client for every life of the connection has neither.
"""

import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
from nats.aio.client import Client
from nats.errors import NoRespondersError

from bus.errors import FOREIGN, raised
from bus.pins import trusting
from bus.port import Unreachable
from bus.settings import BrokerSettings

DIAL_S = 5.0
PING_S = 5
PINGS_LOST = 2
CLOSE_S = 2.0
ANSWER_S = 2.0


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
        with anyio.fail_after(DIAL_S):
            await client.connect(
                settings.url.split(","),
                user=settings.user or None,
                password=settings.password or None,
                tls=_tls(settings),
                inbox_prefix=inbox,
                name=settings.user,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=2,
                ping_interval=PING_S,
                max_outstanding_pings=PINGS_LOST,
                pending_size=0,  # buffer nothing for a connection that is gone
                error_cb=erred,
                closed_cb=closed,
            )
    except ssl.SSLError as error:  # an OSError, too
        await hang_up(client)
        raise Unreachable(f"{doing}: {error}: check pin, ca, cert and key of the broker settings") from error
    except FOREIGN as error:
        await hang_up(client)
        raise raised(error, doing) from error
    except anyio.get_cancelled_exc_class():
        await hang_up(client)
        raise
    return client


def _tls(settings: BrokerSettings) -> ssl.SSLContext | None:
    if not (settings.ca or settings.pin or settings.cert or "tls://" in settings.url):
        return None
    context = trusting(Path(settings.pin)) if settings.pin else ssl.create_default_context(cafile=settings.ca)
    if settings.cert:
        context.load_cert_chain(settings.cert, settings.key)
    return context


async def hang_up(client: Client) -> None:
    """Close, also when cancelled, and whatever state the client is in."""
    with anyio.move_on_after(CLOSE_S, shield=True):
        try:
            await client.close()
        except FOREIGN:
            pass  # its goodbye failed
        finally:
            # One whose goodbye fails, or who is refused while it connects, leaves its socket open.
            if (transport := client._transport) is not None:  # noqa: SLF001 - nats-py has no other word for it
                transport.close()  # type: ignore[no-untyped-call]


async def answered(settings: BrokerSettings, inbox: str, subject: str) -> bool:
    """Whether anybody answers what this user asks of `subject`. Raises Denied where it is not let in; Unreachable."""

    async def heard(*_: Exception) -> None:
        """The connection is only tried."""

    client = await dial(settings, inbox, heard, heard)
    try:
        await client.request(subject, timeout=ANSWER_S)
    except NoRespondersError:
        return False
    except FOREIGN as error:
        raise raised(error, f"asking {subject}") from error
    finally:
        await hang_up(client)
    return True
