"""Which hosts to wake for the work that waits: among those that offer it the lowest rank, then the next."""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from schemas.power import PowerState


class Candidate(NamedTuple):
    """A declared host as seen when it may be woken. `pools` None: never seen, so it may offer anything."""

    host: str
    rank: int
    pools: frozenset[str] | None
    state: PowerState
    in_state_s: float
    fallback_after: float

    def offers(self, pool: str) -> bool:
        """Whether work of that pool may be for this host."""
        return self.pools is None or pool in self.pools

    @property
    def passed_over(self) -> bool:
        """Whether the next host is called as well."""
        blocked = self.state is PowerState.BLOCKED and self.in_state_s >= self.fallback_after
        return blocked or self.state is PowerState.FAULT


def called(pools: Iterable[str], served: Collection[str], candidates: Collection[Candidate]) -> frozenset[str]:
    """The hosts that should be awake for `pools`, of which those in `served` have a host that is up."""
    ranked = sorted(candidates, key=lambda candidate: (candidate.rank, candidate.host))
    return frozenset(host for pool in pools if pool not in served for host in _for_pool(pool, ranked))


def _for_pool(pool: str, ranked: Iterable[Candidate]) -> Iterable[str]:
    for candidate in ranked:
        if candidate.offers(pool):
            yield candidate.host
            if not candidate.passed_over:
                return
