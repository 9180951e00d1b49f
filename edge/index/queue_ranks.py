"""Who stands where: the queued jobs of every owner, pool and priority, in memory, in the order they were queued.

Eight bytes a job, and a rank by bisection: a submit behind 100,000 others costs what one behind none does.
"""

from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from edge.core.clock import micros
from schemas.job import Job
from schemas.status import PRIORITIES, Priority


class QueueKey(NamedTuple):
    """Jobs of one owner that wait for the same queue."""

    owner: str
    pool: str
    priority: Priority


class QueueRanks:
    """Ranks. A job stands at the microsecond it was queued at; equal ones count as one behind the other."""

    def __init__(self) -> None:
        self._times_by_queue: defaultdict[tuple[str, Priority], dict[str, array[int]]] = defaultdict(dict)
        self._totals: defaultdict[tuple[str, Priority], int] = defaultdict(int)

    def add(self, line: QueueKey, queued_us: int) -> None:
        """A job stands in line."""
        owners = self._times_by_queue[line.pool, line.priority]
        standing = owners.setdefault(line.owner, array("q"))
        standing.insert(bisect_left(standing, queued_us), queued_us)
        self._totals[line.pool, line.priority] += 1

    def remove(self, line: QueueKey, queued_us: int) -> None:
        """One job that stood there since `queued_us` has left. Raises ValueError when none did."""
        owners = self._times_by_queue[line.pool, line.priority]
        standing = owners.get(line.owner, array("q"))
        at = bisect_left(standing, queued_us)
        if at == len(standing) or standing[at] != queued_us:
            raise ValueError(f"nothing stands in {line} since {queued_us}")
        del standing[at]
        self._totals[line.pool, line.priority] -= 1
        if not standing:
            del owners[line.owner]

    def count_queued(self, line: QueueKey) -> int:
        """Jobs in line."""
        return len(self._times_by_queue[line.pool, line.priority].get(line.owner, ()))

    def count_pending(self, pools: Iterable[str]) -> int:
        """Jobs in the lines of these pools."""
        return sum(self._totals.get((pool, priority), 0) for pool in pools for priority in PRIORITIES)

    def non_empty_keys(self) -> list[QueueKey]:
        """The lines in which jobs stand."""
        return [QueueKey(owner, *queue) for queue, owners in self._times_by_queue.items() for owner in owners]

    def count_ahead(self, job: Job, span: int) -> int:
        """How many queued jobs start before `job`, as far as can be foretold; `span` is the owner's window.

        Higher priorities go first. Of the job's own line, those queued earlier. Of another owner's line: inside the
        window those queued earlier, at most a window of them; behind it the windows take turns, one for one.
        """
        if job.queued_at is None:
            raise ValueError(f"{job.owner}/{job.id} was never queued")
        since = micros(job.queued_at)
        higher = PRIORITIES[: PRIORITIES.index(job.priority)]
        owners = self._times_by_queue[job.pool, job.priority]
        rank = bisect_left(owners.get(job.owner, array("q")), since)
        ahead = sum(self._totals[job.pool, priority] for priority in higher) + rank
        for owner, standing in owners.items():
            if owner == job.owner:
                continue
            ahead += min(bisect_left(standing, since), span) if rank < span else min(len(standing), rank)
        return ahead
