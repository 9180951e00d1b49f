"""The brokers' HTTP monitors: the only place that tells whether writes are synced, and how full a disk is."""

import asyncio
from collections.abc import Callable, Sequence

import httpx
import msgspec
from msgspec import Struct, field

from bus.port import Unreachable

DEAF_S = 30.0  # a server that is switched off answers nothing at all: not every submit waits to find that out again


class _Config(Struct, frozen=True):
    max_storage: int = 0
    sync_always: bool = False  # absent when writes are synced now and then


class _Stats(Struct, frozen=True):
    storage: int = 0


class _JetStream(Struct, frozen=True):
    config: _Config = _Config()
    stats: _Stats = _Stats()


class Varz(Struct, frozen=True):
    """The parts of `/varz` that are used here."""

    version: str = ""
    jetstream: _JetStream = field(default_factory=_JetStream)

    @property
    def used(self) -> float:
        """The share of the store in use."""
        store = self.jetstream
        return store.stats.storage / store.config.max_storage if store.config.max_storage > 0 else 0.0

    @property
    def synced(self) -> bool:
        """Whether every acknowledged write is on disk."""
        return self.jetstream.config.sync_always


class Monitors:
    """One a server. `running`: a clock that never goes back, in seconds."""

    def __init__(self, clients: Sequence[httpx.AsyncClient], running: Callable[[], float]) -> None:
        self._clients = clients
        self._running = running
        self._deaf_until = [0.0] * len(clients)

    async def ask(self) -> list[Varz]:
        """What those that answer say; one that did not is not asked again for DEAF_S, as long as another answers.

        Raises Unreachable when none does.
        """
        now = self._running()
        hearing = [place for place, until in enumerate(self._deaf_until) if until <= now]
        for asked in (hearing, range(len(self._clients))):
            said = await asyncio.gather(*(self._ask(place) for place in asked))
            if answers := [one for one in said if isinstance(one, Varz)]:
                return answers
        urls = ", ".join(str(client.base_url) for client in self._clients)
        why = next((str(one) for one in said if not isinstance(one, Varz)), "")
        what = f"the broker's monitor {urls} does not answer ({why})"
        raise Unreachable(f"{what}: set broker.monitor to the `http` address of nats.conf")

    async def _ask(self, place: int) -> Varz | str:
        """What it says, or why it says nothing."""
        try:
            said = msgspec.json.decode((await self._clients[place].get("/varz")).content, type=Varz)
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            self._deaf_until[place] = self._running() + DEAF_S
            return str(error) or type(error).__name__
        self._deaf_until[place] = 0.0
        return said
