"""Which endpoints can start on this host now, and why the others cannot."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread

from runner.cards import Cards
from runner.catalogue import Kind
from runner.execution import Execution
from runner.gpu.placement import Placed, Refused
from runner.slots import disk_free_mb
from runner.verdict import FailedAs
from schemas.reasons import Reason


class _Measure(NamedTuple):
    """MiB free on the disk, and when that was (seconds of the loop's clock)."""

    mb: int
    at: float


FRESH_S = 5.0  # a measure of the disk this old still counts: a claim waits for none, the heartbeat takes them


class Readiness:
    """Asked before every claim and for every heartbeat. `disk` is the folder that jobs write to."""

    def __init__(self, kinds: Mapping[str, Kind], cards: Cards, disk: Path, image_missing_s: float) -> None:
        self._kinds = kinds
        self._cards = cards
        self._disk = disk
        self._image_missing_s = image_missing_s
        self._free = _Measure(0, float("-inf"))
        self._without_image: dict[str, float] = {}
        self.paused = False  # the edge's power law lets this host take nothing new
        self.engine_away: str | None = None  # why the engine does not answer, None while it does

    async def cannot(self, *, anew: bool = False) -> dict[str, Reason]:
        """The reason of every endpoint that cannot start now; `anew`: by a new measure of the disk."""
        free = await self._free_mb(0.0 if anew else FRESH_S)
        placed = {name: self._place(kind, free) for name, kind in self._kinds.items()}
        return {name: one.reason for name, one in placed.items() if isinstance(one, Refused)}

    async def place(self, kind: Kind, *, ahead: bool = False) -> Placed | Refused:
        """The cards that a container of this kind would get now; `ahead`: one that is to wait for its job."""
        return self._place(kind, await self._free_mb(FRESH_S), ahead=ahead)

    def ended(self, execution: Execution) -> None:
        """Learn from an execution: without its image an endpoint is not asked for again for a while."""
        if isinstance(execution.verdict, FailedAs) and execution.verdict.code == "image_missing":
            until = anyio.current_time() + self._image_missing_s
            self._without_image[execution.ticket.job.endpoint] = until

    async def _free_mb(self, fresh_s: float) -> int:
        if anyio.current_time() - self._free.at > fresh_s:
            self._free = _Measure(await anyio.to_thread.run_sync(disk_free_mb, self._disk), anyio.current_time())
        return self._free.mb

    def _place(self, kind: Kind, free_mb: int, *, ahead: bool = False) -> Placed | Refused:
        if self.paused:
            return Refused(Reason.PAUSED, "the host is being put out")
        if self.engine_away is not None:
            return Refused(Reason.ENGINE_AWAY, self.engine_away)
        if anyio.current_time() < self._without_image.get(kind.endpoint.name, 0.0):
            return Refused(Reason.IMAGE_MISSING, f"the engine has no image {kind.endpoint.image}")
        return self._cards.place(kind.endpoint, free_mb, ahead=ahead)
