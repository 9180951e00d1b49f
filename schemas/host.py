"""A host as it speaks of itself: its presence, gone 15 s after the last word, and the offer that outlives it."""

from typing import Any

from msgspec import Struct, field

from schemas.endpoint import Endpoint
from schemas.job import Moment
from schemas.words import Token

PRESENCE_TTL_S = 15.0  # HOSTS forgets a host after this
PRESENCE_EVERY_S = 3.0
GONE_AFTER_S = 2 * PRESENCE_TTL_S  # an observer must have been connected this long before absence counts


class GpuReport(Struct, frozen=True):
    """One card as `GET /v1/hosts` shows it. MB are MiB; null where the card does not tell."""

    uuid: str
    name: str
    fitness: str = "fit"
    reason: str | None = None
    memory_total_mb: int | None = None
    memory_free_mb: int | None = None
    temperature_c: int | None = None
    utilization: int | None = None
    power_w: float | None = None


class Running(Struct, frozen=True):
    """One execution on a host."""

    owner: Token
    id: Token
    endpoint: Token
    round: int
    attempt: int


class Warm(Struct, frozen=True):
    """Containers of an endpoint that wait for their jobs: those that are `ready`, those that load.

    `why` tells what became of the last one that died, until one is ready.
    """

    endpoint: Token
    ready: int
    loading: int
    why: str | None = None


class Presence(Struct, frozen=True, kw_only=True):
    """The heartbeat in HOSTS. `cannot` says why an endpoint cannot start there now (name to Reason)."""

    host: Token
    incarnation: Token
    at: Moment
    since: Moment
    draining: bool = False
    slots: int = 1
    engine: str = ""
    gpu_state: str = "none"
    gpus: tuple[GpuReport, ...] = ()
    running: tuple[Running, ...] = ()
    warm: tuple[Warm, ...] = ()
    cannot: dict[str, str] = field(default_factory=dict)


class Offer(Struct, frozen=True, kw_only=True):
    """What a host can run, kept in OFFERS while it is off. Of two offers that differ, the newest validates."""

    host: Token
    incarnation: Token
    at: Moment
    endpoints: tuple[Endpoint, ...] = ()
    slots: int = 1
    gpus: tuple[GpuReport, ...] = ()


class HostView(Struct, frozen=True, kw_only=True):
    """A Host of `/v1/hosts`. `state`: online, draining or off here; the power law adds the others."""

    id: Token
    state: str
    since: Moment | None = None
    incarnation: str | None = None
    wake_median_s: float | None = None
    endpoints: tuple[str, ...] = ()
    gpus: tuple[GpuReport, ...] = ()
    jobs: tuple[str, ...] = ()
    hold: dict[str, Any] | None = None
    history: tuple[dict[str, Any], ...] = ()


class Tombstone(Struct, frozen=True):
    """A deleted digest that hosts must drop from their caches before they next take work."""

    sha256: str
    at: Moment
