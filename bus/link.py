"""The connection as its users see it: how it is, how long it has stood, when it came back."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from msgspec import Struct

from bus.jetstream import Answer, JetStream
from bus.monitor import Monitors, Seen, ailing, outvoted
from bus.port import Health
from bus.unbroken import Unbroken


class _Limits(Struct, frozen=True):
    max_storage: int = -1


class _Account(Answer, frozen=True):
    storage: int = 0
    limits: _Limits = _Limits()


class WireLink:
    """`monitors`: of the servers that the broker is; None: not asked, so nobody knows whether writes are synced."""

    def __init__(self, js: JetStream, monitors: Monitors | None, unbroken: Unbroken) -> None:
        self._js = js
        self._monitors = monitors
        self._unbroken = unbroken
        self._listeners: set[asyncio.Queue[None]] = set()

    @property
    def connected(self) -> bool:
        """Whether the connection stands now."""
        return self._js.wire.connected

    @property
    def trouble(self) -> str:
        """Why a broker that answers cannot be used."""
        return self._js.wire.trouble

    async def health(self) -> Health:
        """Over the monitors (how is it? the worst of the servers) and over the connection (is it there?).

        The monitors first: a broker that has switched its store off answers nothing else, and only they say why.
        """
        worst = None if self._monitors is None else _worst(await self._monitors.ask(), len(self._monitors))
        if worst is not None and worst.halted:
            return worst
        account = await self._js.api("INFO", {}, _Account)
        limit = account.limits.max_storage
        return worst or Health(account.storage / limit if limit > 0 else 0.0, None, "")

    def unbroken_s(self) -> float:
        """Counts anew after a break, a suspend or a clock jump."""
        return self._unbroken.seconds()

    def went_up(self) -> None:
        """The connection stands; everything on it is set up."""
        self._unbroken.up()
        for listener in self._listeners:
            listener.put_nowait(None)

    def went_down(self) -> None:
        """It broke."""
        self._unbroken.down()

    async def reconnects(self) -> AsyncIterator[None]:
        """From the first wait on."""
        mine: asyncio.Queue[None] = asyncio.Queue()
        self._listeners.add(mine)
        try:
            while True:
                await mine.get()
                yield
        finally:
            self._listeners.discard(mine)


def _worst(said: Sequence[Seen], servers: int) -> Health:
    """Of those that write, as long as they are enough: what the others say of themselves is nobody's hindrance."""
    halted = outvoted(said)
    asked = said if halted else [one for one in said if not one.halted]
    used, synced = max(one.used for one in asked), all(one.synced for one in asked)
    return Health(used, synced, asked[0].version, halted, () if halted else ailing(said, servers))
