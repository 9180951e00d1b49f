"""What a life works with, besides those it talks to."""

from collections.abc import Awaitable, Callable, Collection, Mapping

from msgspec import Struct

from runner.cards import Cards
from runner.catalogue import Kind
from runner.settings import WarmSettings
from runner.slots import Slots
from schemas.asset import Digest

Forget = Callable[[Collection[Digest]], Awaitable[None]]


class Means(Struct, frozen=True, kw_only=True):
    """`kinds` can run, on `cards`, as many at once as there are `slots`.

    `forget` drops deleted assets from the host's cache; `leave`: the engine keeps containers running without us.
    `poweroff`: the owner's program that switches this machine off.
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
