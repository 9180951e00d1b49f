"""The log of what clients observe, in order; also on disk, for a run that failed."""

from pathlib import Path

import msgspec

from tests.chaos.evidence import HostOutage, Observation


class ObservationLog:
    """`seen` and `cuts` so far; every line of `file` is one of them."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.seen: list[Observation] = []
        self.cuts: list[HostOutage] = []

    def note(self, seen: Observation) -> None:
        """Record an observation of this moment."""
        self.seen.append(seen)
        self._write(seen)

    def note_outage(self, cut: HostOutage) -> None:
        """Record an outage that is over."""
        self.cuts.append(cut)
        self._write(cut)

    def _write(self, one: Observation | HostOutage) -> None:
        with self._file.open("ab") as file:
            file.write(msgspec.json.encode(one) + b"\n")
