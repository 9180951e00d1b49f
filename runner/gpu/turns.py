"""Turns on a GPU: jobs with small shares must not start past a job with a large one for ever. Pure.

A GPU on which small jobs come and go is never empty, so a job that needs all of it would not start. When an endpoint
was refused for its share for `turn_after_s` and a job of it waits, GPUs are kept for it: no other endpoint starts there
until it has started, or until no job of it waits any more. GPUs are kept for one endpoint at a time, the one that was
refused first. A job of priority `low` gets no turn.

A runner sees only the first message of a pool. In the pool of several endpoints this may be a message of another one,
and a message that was returned because its job cannot start is hidden for `hidden_s`. So a job that was seen counts as
waiting for twice that time, and one look at such a pool that finds no job of the endpoint proves nothing.

Without a job, `turn_after_s` begins again. So a job waits at most twice that time, and then for the jobs that run on
these GPUs already.
"""

import math
from collections.abc import Mapping

from runner.gpu.placement import ANY_CARD, PlacementCapacity, PlacementPolicy, free_share, is_fit
from schemas.endpoint import Resources
from schemas.requirements import CardRequirement
from schemas.status import WaitReason

LOOK_INTERVAL_S = 5.0  # how often the queue of an endpoint is looked at, at most


class ShareTurns:
    """Endpoints that were refused for their share, and the one for which GPUs are kept. Times are in seconds."""

    def __init__(self, patience_s: float, hidden_s: float) -> None:
        self._patience_s = patience_s
        self._seen_for_s = 2 * hidden_s
        self._refused_since: dict[str, float] = {}
        self._looked_at: dict[str, float] = {}
        self._seen_at: dict[str, float] = {}  # when a job of the endpoint was last seen to wait
        self._unseen_at: dict[str, float] = {}  # from when on the looks since then prove that none waits
        self.kept_for: str | None = None

    def note_refused(self, refused: Mapping[str, WaitReason], gpus_needed: Mapping[str, int], now: float) -> None:
        """Record why which endpoints cannot start now. `gpus_needed`: how many GPUs each endpoint of the host needs.

        An endpoint that cannot start for another reason than its share, or that was removed, loses its turn.
        """
        self._refused_since = {
            name: self._refused_since.get(name, now)
            for name, reason in refused.items()
            if reason is WaitReason.GPU_SHARE_SHORT
            or (reason is WaitReason.BEHIND and (name in self._refused_since or gpus_needed[name] > 1))
        }
        is_refused_otherwise = self.kept_for in refused and self.kept_for not in self._refused_since
        if is_refused_otherwise or self.kept_for not in gpus_needed:
            self.kept_for = None
        for name in (self._looked_at.keys() | self._seen_at) - self._refused_since.keys() - {self.kept_for}:
            self._forget_looks(name)

    def name_to_check(self, now: float) -> str | None:
        """Return the endpoint whose queue must be looked at now; None without one."""
        names, pause_s = self._due(now), min(LOOK_INTERVAL_S, self._patience_s)
        if self.kept_for is not None:
            names, pause_s = [self.kept_for], LOOK_INTERVAL_S
        looked_at = {name: self._looked_at.get(name, -math.inf) for name in names}
        return min(
            (name for name in names if now - looked_at[name] >= pause_s), key=looked_at.__getitem__, default=None
        )

    def note_looked(self, name: str, found: str | None, now: float, *, is_shared: bool) -> None:
        """Record a look at the queue of `name`. `found`: the endpoint of the first job there; None if no job is there.

        `is_shared`: other endpoints may have the same pool.
        """
        self._looked_at[name] = now
        if found is not None:
            self.note_waiting(found, now)
        if found != name:
            self._unseen_at.setdefault(name, now + self._seen_for_s if is_shared else now)

    def note_waiting(self, name: str, now: float) -> None:
        """Record that a job of this endpoint waits: its message was seen."""
        self._seen_at[name] = now
        self._unseen_at.pop(name, None)

    def choose(self, now: float) -> None:
        """Give the turn to the endpoint that was refused first and has a job. Without a job, its patience restarts."""
        for name in [self.kept_for] if self.kept_for is not None else self._due(now):
            if now >= self._unseen_at.get(name, math.inf):
                self._restart(name, now)
            elif self.kept_for is None and now - self._seen_at.get(name, -math.inf) < self._seen_for_s:
                self.kept_for = name

    def note_started(self, name: str) -> None:
        """Record that a job of this endpoint has started: its turn is over."""
        self._refused_since.pop(name, None)
        self._forget_looks(name)
        if self.kept_for == name:
            self.kept_for = None

    def _due(self, now: float) -> list[str]:
        """Return the endpoints whose patience is over, first the one that was refused first."""
        due = [name for name, since in self._refused_since.items() if now - since >= self._patience_s]
        return sorted(due, key=self._refused_since.__getitem__)

    def _restart(self, name: str, now: float) -> None:
        self._forget_looks(name)
        if name in self._refused_since:
            self._refused_since[name] = now
        if self.kept_for == name:
            self.kept_for = None

    def _forget_looks(self, name: str) -> None:
        for times in (self._looked_at, self._seen_at, self._unseen_at):
            times.pop(name, None)


def choose_kept_gpus(
    capacity: PlacementCapacity, need: Resources, policy: PlacementPolicy, cards: CardRequirement = ANY_CARD
) -> frozenset[str]:
    """Return the GPUs to keep for a job: those with the most share free. None if too few could ever take it."""
    offers = [
        (-free_share(one for one in capacity.reservations if one.uuid == sample.uuid and not one.is_idle), sample.index)
        for sample in capacity.snapshot.samples
        if is_fit(capacity, sample)
        and cards.is_met_by(sample.name, sample.compute_capability)
        and sample.memory_total_mb - policy.reserve_mb >= need.vram_mb
    ]
    chosen = {index for _, index in sorted(offers)[: need.gpus]}
    if len(chosen) < need.gpus:
        return frozenset()
    return frozenset(sample.uuid for sample in capacity.snapshot.samples if sample.index in chosen)
