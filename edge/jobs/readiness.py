"""Whether the edge may accept new work: the broker is connected and writable, syncs its writes, and has space."""

from anyio import Lock

from bus.health import BrokerHealth, BrokerStatus
from bus.interface import BrokerUnreachable
from edge.core.clock import Clock
from schemas.problems import ProblemError

# New work is refused when this share of the broker's store is used, so that results can still be recorded.
STORE_USED_LIMIT_RATIO = 0.8
_STATUS_MAX_AGE_S = 2.0
_STALE_STATUS_MAX_AGE_S = 4.0  # while a new status is being fetched
_RETRY_AFTER_S = 5


class BrokerReadiness:
    """Caches the broker's status for two seconds, so that a submit rarely waits for it."""

    def __init__(self, health: BrokerHealth, clock: Clock, *, allow_unsynced: bool = False) -> None:
        self._health = health
        self._clock = clock
        self._allow_unsynced = allow_unsynced
        self._status: BrokerStatus | None = None
        self._fetched_at = clock()
        self._fetch_lock = Lock()

    @property
    def degraded(self) -> tuple[str, ...]:
        """Faults of single servers of the broker, as of the last status, while the other servers do the work."""
        return self._status.degraded if self._status else ()

    async def check(self) -> None:
        """Raise the ProblemError of `problem` if new work cannot be accepted."""
        problem = await self.problem()
        if problem is not None:
            raise problem

    async def problem(self) -> ProblemError | None:
        """Return why new work cannot be accepted: `unavailable` or `store_full`. None: it can be accepted."""
        if not self._health.is_connected:
            return _broker_unavailable(self._health.fault)
        status = await self._current_status()
        return _broker_unavailable() if status is None else self._status_problem(status)

    def _status_problem(self, status: BrokerStatus) -> ProblemError | None:
        if status.write_failed:
            return ProblemError(
                "store_full",
                "the broker could not write because its disk is full or broken, and it stores nothing until a restart: "
                "make room on that disk, then restart nats-server (`lamplighter up` restarts it by itself)",
            )
        if status.is_durable is not True and not self._allow_unsynced:
            return ProblemError(
                "unavailable",
                "the broker does not sync every write, so a power cut could lose accepted jobs: set sync_interval: "
                "always in nats.conf, or allow_unsynced at the edge",
                retry_after_s=_RETRY_AFTER_S,
            )
        if status.used_share >= STORE_USED_LIMIT_RATIO:
            return ProblemError(
                "store_full",
                f"the broker's store is {status.used_share:.0%} full, and new work is refused from "
                f"{STORE_USED_LIMIT_RATIO:.0%} on: delete jobs or give it more space",
            )
        return None

    async def _current_status(self) -> BrokerStatus | None:
        """Return the status from the cache or from the broker; None if the broker does not answer."""
        cached = self._cached_status(_STALE_STATUS_MAX_AGE_S if self._fetch_lock.locked() else _STATUS_MAX_AGE_S)
        if cached is not None:
            return cached
        async with self._fetch_lock:
            cached = self._cached_status(_STATUS_MAX_AGE_S)
            return cached if cached is not None else await self._fetch_status()

    def _cached_status(self, max_age_s: float) -> BrokerStatus | None:
        """Return the last status if it is younger than `max_age_s`."""
        age = (self._clock() - self._fetched_at).total_seconds()
        return self._status if 0 <= age < max_age_s else None

    async def _fetch_status(self) -> BrokerStatus | None:
        try:
            self._status = await self._health.status()
        except BrokerUnreachable:
            return None
        self._fetched_at = self._clock()
        return self._status


def _broker_unavailable(fault: str = "") -> ProblemError:
    detail = fault or "the broker does not answer: try again in a few seconds"
    return ProblemError("unavailable", detail, retry_after_s=_RETRY_AFTER_S)
