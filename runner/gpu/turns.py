"""Turns on a GPU: jobs with small shares must not start past a job with a large one for ever. Pure.

A GPU on which small jobs come and go is never empty, so a job that needs all of it would not start. When an endpoint
was refused for its share for `turn_after_s` and a job of it waits, GPUs are kept for it: no other endpoint starts there
until it has started, or until no job of it waits any more. GPUs are kept for one endpoint at a time, the one that was
refused first. A job of priority `low` gets no turn.

The queue is looked at once in `turn_after_s`. So a job waits at most twice that time, and then for the jobs that run on
these GPUs already.
"""

from collections.abc import Mapping

from runner.gpu.placement import ANY_CARD, PlacementCapacity, PlacementPolicy, free_share, is_fit
from schemas.endpoint import Resources
from schemas.requirements import CardRequirement
from schemas.status import WaitReason

KEPT_CHECK_INTERVAL_S = 5.0  # how often the queue of an endpoint is looked at while GPUs are kept for it


class ShareTurns:
    """Endpoints that were refused for their share, and the one for which GPUs are kept. Times are in seconds."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._refused_since: dict[str, float] = {}
        self._checked_at = 0.0
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

    def name_to_check(self, now: float) -> str | None:
        """Return the endpoint whose queue must be looked at now; None without one."""
        if self.kept_for is not None:
            return self.kept_for if now - self._checked_at >= KEPT_CHECK_INTERVAL_S else None
        name, since = min(self._refused_since.items(), key=lambda item: item[1], default=("", now))
        return name if name and now - since >= self._patience_s else None

    def note_checked(self, name: str, now: float, *, has_job: bool) -> None:
        """Record whether a job of this endpoint waits: it gets its turn, or its patience starts again."""
        self._checked_at = now
        if has_job:
            self.kept_for = name
            return
        self.kept_for = None
        if name in self._refused_since:
            self._refused_since[name] = now

    def note_started(self, name: str) -> None:
        """Record that a job of this endpoint has started: its turn is over."""
        self._refused_since.pop(name, None)
        if self.kept_for == name:
            self.kept_for = None


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
