"""Whether new work may be taken at all: the broker is there and can write, writes are synced, its store has room."""

from anyio import Lock

from bus.interface import BrokerHealth, BrokerStatus, BrokerUnreachable
from edge.core.clock import Clock
from schemas.problems import ProblemError

STORE_USED_LIMIT_RATIO = (
    0.8  # share of the broker's store above which new work is refused, so that results can still be recorded
)
_STATUS_MAX_AGE_S = 2.0
_STALE_STATUS_MAX_AGE_S = 4.0  # while it is asked again
_RETRY_AFTER_S = 5


class BrokerReadiness:
    """Asks the broker at most every two seconds, so that a submit does not pay for it."""

    def __init__(self, link: BrokerHealth, clock: Clock, *, allow_unsynced: bool = False) -> None:
        self._link = link
        self._clock = clock
        self._allow_unsynced = allow_unsynced
        self._status: BrokerStatus | None = None
        self._fetched_at = clock()
        self._fetch_lock = Lock()

    @property
    def degraded(self) -> tuple[str, ...]:
        """What had befallen some servers of the broker when it was last asked, while the others do the work."""
        return self._status.degraded if self._status else ()

    async def check(self) -> None:
        """Raises Refused `unavailable` (broker away or unsynced) or `store_full`."""
        health = await self._current_status()
        if health.write_failed:
            raise ProblemError(
                "store_full",
                "the broker could not write, its disk is full or broken, and it stores nothing until it is restarted: "
                "make room on that disk, then restart nats-server (`lamplighter up` then does it by itself)",
            )
        if health.is_durable is not True and not self._allow_unsynced:
            raise ProblemError(
                "unavailable",
                "the broker does not sync every write, so a power cut could lose accepted jobs: set sync_interval: "
                "always in nats.conf, or allow_unsynced at the edge",
                retry_after_s=_RETRY_AFTER_S,
            )
        if health.used_share >= STORE_USED_LIMIT_RATIO:
            raise ProblemError(
                "store_full",
                f"the broker's store is {health.used_share:.0%} full, from {STORE_USED_LIMIT_RATIO:.0%} on new work is "
                "refused: delete jobs or give it more space",
            )

    async def _current_status(self) -> BrokerStatus:
        if not self._link.is_connected:
            raise _broker_unavailable(self._link.fault)
        known = self._cached_status(_STALE_STATUS_MAX_AGE_S if self._fetch_lock.locked() else _STATUS_MAX_AGE_S)
        if known is not None:
            return known
        async with self._fetch_lock:
            known = self._cached_status(_STATUS_MAX_AGE_S)
            return known if known is not None else await self._fetch_status()

    def _cached_status(self, within_s: float) -> BrokerStatus | None:
        """What the broker said, unless that is `within_s` or longer ago."""
        age = (self._clock() - self._fetched_at).total_seconds()
        return self._status if 0 <= age < within_s else None

    async def _fetch_status(self) -> BrokerStatus:
        try:
            self._status = health = await self._link.status()
        except BrokerUnreachable as error:
            raise _broker_unavailable() from error
        self._fetched_at = self._clock()
        return health


def _broker_unavailable(trouble: str = "") -> ProblemError:
    why = trouble or "the broker is away: try again in a few seconds"
    return ProblemError("unavailable", why, retry_after_s=_RETRY_AFTER_S)
