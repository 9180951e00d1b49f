"""Subscriptions over all lives of a connection, and what a nats-py subscription needs."""

from collections.abc import Awaitable, Callable, Sequence

import anyio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from bus.errors import FOREIGN, raised
from bus.port import BusError

Heard = Callable[[Msg | BusError], None]


class Listener:
    """`heard` gets messages, Unreachable at each break, Denied where the user may not listen."""

    def __init__(self, subject: str, heard: Heard, queue: str = "") -> None:
        self.subject = subject
        self.heard = heard
        self._queue = queue
        self._now: Subscription | None = None

    async def attach(self, client: Client) -> None:
        """Listen on this life of the connection."""

        async def heard(message: Msg) -> None:
            self.heard(message)

        self._now = await subscribe(client, self.subject, heard, self._queue)

    async def detach(self) -> None:
        """Listen no more, also when cancelled."""
        if self._now is None:
            return
        with anyio.CancelScope(shield=True):
            try:
                await self._now.unsubscribe()
            except FOREIGN:
                return


async def attach_all(there: Sequence[Listener], client: Client) -> None:
    """Attach them, and those who join them meanwhile; not those who leave."""
    attached: set[Listener] = set()
    while (waiting := next((one for one in there if one not in attached), None)) is not None:
        await waiting.attach(client)
        attached.add(waiting)
        if waiting not in there:
            await waiting.detach()


async def subscribe(
    client: Client, subject: str, heard: Callable[[Msg], Awaitable[None]], queue: str = ""
) -> Subscription:
    """Without limits: nats-py drops what is beyond them. A stream is bounded by the broker's flow control."""
    try:
        return await client.subscribe(subject, queue=queue, cb=heard, pending_msgs_limit=0, pending_bytes_limit=0)
    except FOREIGN as error:
        raise raised(error, f"subscribing to {subject}") from error
