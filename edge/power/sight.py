"""One look at everything the power law judges by: who beats, what waits and where, which jobs a host still holds."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta

from msgspec import Struct

from bus.port import Bus
from edge.services import index_sql as sql
from edge.services.catalog import Catalog
from edge.services.clock import Clock, micros
from edge.services.hosts import HostWatch
from edge.services.index import Index
from schemas.host import GONE_AFTER_S, Presence
from schemas.reasons import Reason
from schemas.words import ACTIVE, WAITING, Priority, Status

_ALL = 1_000_000  # what runs is bounded by the slots there are, and each of it must be looked at
_SOME = 500  # of what comes soon, enough to name its pools

# Asked of the index with `:at`, the time a host needs ahead of now.
SOON = "status = 'scheduled' AND priority <> 'low' AND (due_us IS NULL OR due_us <= :at)"
LOW_PRESSED = "status IN ('queued', 'scheduled') AND priority = 'low' AND expires_us <= :at"

# What does not pass when the job before has ended.
UNABLE = frozenset({Reason.ENGINE_AWAY, Reason.GPU_NONE, Reason.GPU_UNHEALTHY, Reason.IMAGE_MISSING})


class Outlook(Struct, frozen=True, kw_only=True):
    """`waiting`: pools with work that is or will soon be ready. `waking`: those of them worth a wake.

    `offered` by host: its pools as last heard. `able` by host that beats: those it can serve. `held` by host: records
    running or cancelling there.
    """

    at: datetime
    steady: bool
    present: Mapping[str, Presence]
    offered: Mapping[str, frozenset[str]]
    able: Mapping[str, frozenset[str]]
    waiting: frozenset[str]
    waking: frozenset[str]
    held: Mapping[str, int]


class Sight:
    """What this edge sees."""

    def __init__(self, bus: Bus, index: Index, hosts: HostWatch, catalog: Catalog, now: Clock) -> None:
        self._bus = bus
        self._index = index
        self._hosts = hosts
        self._catalog = catalog
        self._now = now

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever a job has moved."""
        self._index.watch(lambda _steps: changed())

    async def ready(self) -> None:
        """Wait until the jobs are known; nothing may be judged before."""
        await self._index.ready()

    async def look(self, lead_s: float, *, closely: bool = False) -> Outlook:
        """Everything, now. `lead_s`: how long before its time work calls a host. `closely`: ask the queue too.

        Raises BusError, Refused.
        """
        present = {host: row.value for host, row in (await self._bus.hosts.rows()).items()}
        pointed = await self._pointed() if closely else set()
        soon, pressed, lost, held = await self._searched(lead_s)
        queued = {line.pool for line in self._index.lines.occupied()}
        unhurried = {line.pool for line in self._index.lines.occupied() if line.priority is not Priority.LOW}
        waking = unhurried | soon | pressed | lost
        return Outlook(
            at=self._now(),
            steady=self._index.caught_up and self._bus.link.unbroken_s() >= GONE_AFTER_S,
            present=present,
            offered={offer.host: frozenset(e.queue for e in offer.endpoints) for offer in self._catalog.offers()},
            able={host: self._able(here) for host, here in present.items()},
            waiting=frozenset(queued | waking | pointed),
            waking=frozenset(waking),
            held=held,
        )

    async def _searched(self, lead_s: float) -> tuple[set[str], set[str], set[str], Counter[str]]:
        """What only a search finds, asked where the counts say that there is something."""
        counts = self._index.counts()
        statuses = {count.status for count in counts}
        low = any(line.priority is Priority.LOW for line in self._index.lines.occupied())
        scheduled = Status.SCHEDULED in statuses
        at = micros(self._now() + timedelta(seconds=lead_s))
        soon = await self._index.pools(SOON, at, _SOME) if scheduled else set()
        pressed = await self._index.pools(LOW_PRESSED, at, _SOME) if low or scheduled else set()
        lost, held = await self._active() if statuses & ACTIVE else (set(), Counter())
        return soon, pressed, lost, held

    async def _active(self) -> tuple[set[str], Counter[str]]:
        """Pools of jobs whose host is gone, and how many jobs each host holds."""
        lost: set[str] = set()
        held: Counter[str] = Counter()
        for entry in await self._index.matching(sql.ACTIVE, micros(self._now()), _ALL):
            job = entry.recorded.job
            if job.claim is None:
                continue
            held[job.claim.host] += 1
            if self._hosts.gone_for(job.claim) is not None:
                lost.add(job.pool)
        return lost, held

    async def _pointed(self) -> set[str]:
        """Pools of pointers that wait in JOBS, also of those whose records have not reached the index yet."""
        pointers = await self._bus.queue.waiting()
        known = await self._index.standings({pointer.key for pointer in pointers})
        return {p.pool for p in pointers if p.key not in known or known[p.key].status in WAITING}

    def _able(self, here: Presence) -> frozenset[str]:
        offer = next((offer for offer in self._catalog.offers() if offer.host == here.host), None)
        endpoints = offer.endpoints if offer else ()
        return frozenset(e.queue for e in endpoints if here.cannot.get(e.name) not in UNABLE)

    def offering(self, endpoint: str, declared: Iterable[str]) -> set[str]:
        """Of the declared hosts those that offer `endpoint`; one that was never seen may."""
        seen = {offer.host for offer in self._catalog.offers()}
        return {host for host in declared if host not in seen or host in self._catalog.hosts_offering(endpoint)}
