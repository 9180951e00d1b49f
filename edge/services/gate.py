"""Whether new work may be taken at all: the broker is there and can write, writes are synced, its store has room."""

from anyio import Lock

from bus.port import Health, Link, Unreachable
from edge.services.clock import Clock
from schemas.errors import Refused

FULL_AT = 0.8  # share of the broker's store above which new work is refused, so that results can still be recorded
_HEALTH_AGE_S = 2.0
_USABLE_S = 4.0  # while it is asked again
_RETRY_AFTER_S = 5


class Gate:
    """Asks the broker at most every two seconds, so that a submit does not pay for it."""

    def __init__(self, link: Link, clock: Clock, *, allow_unsynced: bool = False) -> None:
        self._link = link
        self._clock = clock
        self._allow_unsynced = allow_unsynced
        self._health: Health | None = None
        self._asked_at = clock()
        self._asking = Lock()

    @property
    def ailing(self) -> tuple[str, ...]:
        """What had befallen some servers of the broker when it was last asked, while the others do the work."""
        return self._health.ailing if self._health else ()

    async def check(self) -> None:
        """Raises Refused `unavailable` (broker away or unsynced) or `store_full`."""
        health = await self._current()
        if health.halted:
            raise Refused(
                "store_full",
                "the broker could not write, its disk is full or broken, and it stores nothing until it is restarted: "
                "make room on that disk, then restart nats-server (`lamplighter up` then does it by itself)",
            )
        if health.synced is not True and not self._allow_unsynced:
            raise Refused(
                "unavailable",
                "the broker does not sync every write, so a power cut could lose accepted jobs: set sync_interval: "
                "always in nats.conf, or allow_unsynced at the edge",
                retry_after_s=_RETRY_AFTER_S,
            )
        if health.used >= FULL_AT:
            raise Refused(
                "store_full",
                f"the broker's store is {health.used:.0%} full, from {FULL_AT:.0%} on new work is refused: delete jobs "
                "or give it more space",
            )

    async def _current(self) -> Health:
        if not self._link.connected:
            raise _away(self._link.trouble)
        known = self._known(_USABLE_S if self._asking.locked() else _HEALTH_AGE_S)
        if known is not None:
            return known
        async with self._asking:
            known = self._known(_HEALTH_AGE_S)
            return known if known is not None else await self._ask()

    def _known(self, within_s: float) -> Health | None:
        """What the broker said, unless that is `within_s` or longer ago."""
        age = (self._clock() - self._asked_at).total_seconds()
        return self._health if 0 <= age < within_s else None

    async def _ask(self) -> Health:
        try:
            self._health = health = await self._link.health()
        except Unreachable as error:
            raise _away() from error
        self._asked_at = self._clock()
        return health


def _away(trouble: str = "") -> Refused:
    why = trouble or "the broker is away: try again in a few seconds"
    return Refused("unavailable", why, retry_after_s=_RETRY_AFTER_S)
