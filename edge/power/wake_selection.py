"""Select the hosts to wake for waiting jobs: for each pool the hosts that offer it, in the order of priority. Pure."""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from schemas.power import PowerState


class WakeCandidate(NamedTuple):
    """A declared host. `pools`: None if it was never seen, so that it may offer any pool."""

    host: str
    wake_priority: int
    pools: frozenset[str] | None
    state: PowerState
    in_state_s: float
    fallback_after: float

    def offers_pool(self, pool: str) -> bool:
        """Return whether the host may run jobs of the pool."""
        return self.pools is None or pool in self.pools

    @property
    def is_passed_over(self) -> bool:
        """Return whether the next host is woken as well."""
        is_blocked = self.state is PowerState.BLOCKED and self.in_state_s >= self.fallback_after
        return is_blocked or self.state is PowerState.FAULT


def select_hosts_to_wake(
    pools: Iterable[str], served: Collection[str], candidates: Collection[WakeCandidate]
) -> frozenset[str]:
    """Return the hosts to wake for `pools`, except for pools in `served`, which have an online host."""
    ranked = sorted(candidates, key=lambda candidate: (candidate.wake_priority, candidate.host))
    return frozenset(host for pool in pools if pool not in served for host in _hosts_for_pool(pool, ranked))


def _hosts_for_pool(pool: str, ranked: Iterable[WakeCandidate]) -> Iterable[str]:
    for candidate in ranked:
        if candidate.offers_pool(pool):
            yield candidate.host
            if not candidate.is_passed_over:
                return
