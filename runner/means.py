"""What a life works with, besides those it talks to."""

from collections.abc import Awaitable, Callable, Collection, Mapping

from msgspec import Struct

from runner.cards import Cards
from runner.catalogue import Kind
from runner.engines.sandbox import Way
from runner.life import Life
from runner.logins import Logins, nobody
from runner.settings import DeadManSettings, WarmSettings
from runner.slots import Slots
from schemas.asset import Digest

Forget = Callable[[Collection[Digest]], Awaitable[None]]
Answers = Callable[[], Awaitable[bool]]


async def always() -> bool:
    """An edge that is never away."""
    return True


async def nothing_to_try(_life: Life, _means: "Means") -> Way | None:
    """An engine that gives no cards to containers."""
    return None


class Means(Struct, frozen=True, kw_only=True):
    """`kinds` can run, on `cards`, as many at once as there are `slots`.

    `forget` drops deleted assets from the host's cache; `leave`: the engine keeps containers running without us.
    `poweroff`: the owner's program that switches this machine off. `logins`: who is logged in here. `answers`: asks
    the edge for a sign of life. `try_injection`: finds the way in which the engine gives cards to containers, None
    where there is nothing to try. `run_as`: the user that jobs run as, None where they run in containers.
    Seconds: `grace_s` for jobs to end when drained, `settle_s` for the records of those that were stopped then.
    """

    kinds: Mapping[str, Kind]
    cards: Cards
    slots: Slots
    forget: Forget
    leave: bool
    warm: WarmSettings = WarmSettings()
    grace_s: float = 10.0
    settle_s: float = 20.0
    poweroff: tuple[str, ...] = ()
    try_injection: Callable[[Life, "Means"], Awaitable[Way | None]] = nothing_to_try
    run_as: str | None = None
    dead_man: DeadManSettings = DeadManSettings()
    logins: Logins = nobody
    answers: Answers = always
