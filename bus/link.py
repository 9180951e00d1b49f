"""The connection as its users see it: how it is, how long it has stood, when it came back."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import msgspec
from msgspec import Struct, field

from bus.jetstream import Answer, JetStream
from bus.port import Health, Unreachable
from bus.unbroken import Unbroken


class _Config(Struct, frozen=True):
    max_storage: int = 0
    sync_always: bool = False  # absent when writes are synced now and then


class _Stats(Struct, frozen=True):
    storage: int = 0


class _JetStreamVarz(Struct, frozen=True):
    config: _Config = _Config()
    stats: _Stats = _Stats()


class _Varz(Struct, frozen=True):
    version: str = ""
    jetstream: _JetStreamVarz = field(default_factory=_JetStreamVarz)


class _Limits(Struct, frozen=True):
    max_storage: int = -1


class _Account(Answer, frozen=True):
    storage: int = 0
    limits: _Limits = _Limits()


class WireLink:
    """`monitor`: a client of the broker's HTTP monitor; None: not asked, so nobody knows whether writes are synced."""

    def __init__(self, js: JetStream, monitor: httpx.AsyncClient | None, unbroken: Unbroken) -> None:
        self._js = js
        self._monitor = monitor
        self._unbroken = unbroken
        self._listeners: set[asyncio.Queue[None]] = set()

    @property
    def connected(self) -> bool:
        """Whether the connection stands now."""
        return self._js.wire.connected

    async def health(self) -> Health:
        """Over the connection first (is it there?), then over the monitor (how is it?)."""
        account = await self._js.api("INFO", {}, _Account)
        if self._monitor is None:
            limit = account.limits.max_storage
            return Health(account.storage / limit if limit > 0 else 0.0, None, "")
        varz = await _varz(self._monitor)
        store = varz.jetstream
        used = store.stats.storage / store.config.max_storage if store.config.max_storage > 0 else 0.0
        return Health(used, store.config.sync_always, varz.version)

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


async def _varz(monitor: httpx.AsyncClient) -> _Varz:
    try:
        return msgspec.json.decode((await monitor.get("/varz")).content, type=_Varz)
    except (httpx.HTTPError, msgspec.DecodeError) as error:
        what = f"the broker's monitor {monitor.base_url} does not answer ({error or type(error).__name__})"
        raise Unreachable(f"{what}: set broker.monitor to the `http` address of nats.conf") from error
