"""The brokers' HTTP monitors: the only place that tells whether writes are synced, and whether a disk is full."""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

import httpx
import msgspec
from msgspec import Struct, field

from bus.port import Unreachable
from schemas.loopback import past_proxies

TIMEOUT = httpx.Timeout(5.0, connect=1.0)
DEAF_S = 30.0  # a server that is switched off answers nothing at all: not every submit waits to find that out again
# What /healthz says of a stream that could not be written: nats-server 2.15 answers nothing for it any more, also when
# there is room again, until it is started anew. "Not enabled" is the same for all streams at once.
HALTED = ("write error", "not enabled")


class _Config(Struct, frozen=True):
    max_storage: int = 0
    sync_always: bool = False  # absent when writes are synced now and then


class _Stats(Struct, frozen=True):
    storage: int = 0


class _JetStream(Struct, frozen=True):
    config: _Config = _Config()
    stats: _Stats = _Stats()


class _Varz(Struct, frozen=True):
    """The parts of `/varz` that are used here."""

    version: str = ""
    server_name: str = ""
    jetstream: _JetStream = field(default_factory=_JetStream)


class _Ill(Struct, frozen=True):
    error: str = ""


class _Healthz(Struct, frozen=True):
    """What `/healthz` complains of."""

    errors: tuple[_Ill, ...] = ()


class Seen(NamedTuple):
    """How one server is. `used`: the share of its store in use. `synced`: every acknowledged write is on disk.

    `halted`: what its disk did not take, in the broker's words; empty where it writes. The rest may then be untrue:
    nats-server 2.15 that had halted before it was first asked calls itself unsynced.
    """

    name: str
    version: str
    used: float
    synced: bool
    halted: str


def monitor(url: str) -> httpx.AsyncClient:
    """A client of one server's monitor."""
    # Reading the system's certificates takes longer than all the rest of opening.
    verify = url.startswith("https:")
    return httpx.AsyncClient(base_url=url, timeout=TIMEOUT, verify=verify, mounts=past_proxies(url))


def outvoted(said: Sequence[Seen]) -> bool:
    """Whether so many of them have stopped writing that nothing is stored any more: of one that one, of three two."""
    return 2 * sum(bool(one.halted) for one in said) >= len(said)


def ailing(said: Sequence[Seen], servers: int) -> tuple[str, ...]:
    """What befell some of the `servers`, of which `said` answer, while the others do the work; a line each."""
    full = (
        f"server {one.name} of the broker could not write, its disk is full or broken, and the others work without it: "
        "make room on that disk, then restart that nats-server"
        for one in said
        if one.halted
    )
    silent = servers - len(said)
    away = (f"{silent} of the broker's {servers} servers do not answer at their monitors: start them anew",)
    return (*full, *(away if silent else ()))


class Monitors:
    """One a server. `running`: a clock that never goes back, in seconds."""

    def __init__(self, clients: Sequence[httpx.AsyncClient], running: Callable[[], float]) -> None:
        self._clients = clients
        self._running = running
        self._deaf_until = [0.0] * len(clients)

    def __len__(self) -> int:
        return len(self._clients)

    async def ask(self) -> list[Seen]:
        """What those that answer say; one that did not is not asked again for DEAF_S, as long as another answers.

        Raises Unreachable when none does.
        """
        now = self._running()
        hearing = [place for place, until in enumerate(self._deaf_until) if until <= now]
        for asked in (hearing, range(len(self._clients))):
            said = await asyncio.gather(*(self._ask(place) for place in asked))
            if answers := [one for one in said if isinstance(one, Seen)]:
                return answers
        # Without the path, which nobody but the edge may know.
        urls = ", ".join(f"{url.scheme}://{url.netloc.decode()}" for url in (one.base_url for one in self._clients))
        why = next((str(one) for one in said if not isinstance(one, Seen)), "")
        what = f"the broker's monitor {urls} does not answer ({why})"
        raise Unreachable(f"{what}: set broker.monitor to the `http` address of nats.conf, with its http_base_path")

    async def _ask(self, place: int) -> Seen | str:
        """What it says, or why it says nothing."""
        client = self._clients[place]
        try:
            varz = msgspec.json.decode((await client.get("/varz")).content, type=_Varz)
            healthz = msgspec.json.decode((await client.get("/healthz?details=true")).content, type=_Healthz)
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            self._deaf_until[place] = self._running() + DEAF_S
            return str(error) or type(error).__name__
        self._deaf_until[place] = 0.0
        store = varz.jetstream
        used = store.stats.storage / store.config.max_storage if store.config.max_storage > 0 else 0.0
        return Seen(varz.server_name, varz.version, used, store.config.sync_always, _halted(healthz))


def _halted(healthz: _Healthz) -> str:
    return next((ill.error for ill in healthz.errors if any(word in ill.error.lower() for word in HALTED)), "")
