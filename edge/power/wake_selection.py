"""Which hosts to wake for the work that waits: among those that offer it the lowest rank, then the next."""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from schemas.power import PowerState


class WakeCandidate(NamedTuple):
    """A declared host as seen when it may be woken. `pools` None: never seen, so it may offer anything."""

    host: str
    wake_priority: int
    pools: frozenset[str] | None
    state: PowerState
    in_state_s: float
    fallback_after: float

    def offers_pool(self, pool: str) -> bool:
        """Whether work of that pool may be for this host."""
        return self.pools is None or pool in self.pools

    @property
    def is_passed_over(self) -> bool:
        """Whether the next host is called as well."""
        blocked = self.state is PowerState.BLOCKED and self.in_state_s >= self.fallback_after
        return blocked or self.state is PowerState.FAULT


def select_hosts_to_wake(
    pools: Iterable[str], served: Collection[str], candidates: Collection[WakeCandidate]
) -> frozenset[str]:
    """The hosts that should be awake for `pools`, of which those in `served` have a host that is up."""
    ranked = sorted(candidates, key=lambda candidate: (candidate.wake_priority, candidate.host))
    return frozenset(host for pool in pools if pool not in served for host in _hosts_for_pool(pool, ranked))


def _hosts_for_pool(pool: str, ranked: Iterable[WakeCandidate]) -> Iterable[str]:
    for candidate in ranked:
        if candidate.offers_pool(pool):
            yield candidate.host
            if not candidate.is_passed_over:
                return
