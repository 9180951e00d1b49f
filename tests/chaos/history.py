"""Where clients write down what they see, in the order in which they see it; also on disk, for a run that failed."""

from pathlib import Path

import msgspec

from tests.chaos.evidence import Cut, Seen


class History:
    """`seen` and `cuts` so far; every line of `file` is one of them."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.seen: list[Seen] = []
        self.cuts: list[Cut] = []

    def note(self, seen: Seen) -> None:
        """It was seen now."""
        self.seen.append(seen)
        self._write(seen)

    def cut(self, cut: Cut) -> None:
        """It is over."""
        self.cuts.append(cut)
        self._write(cut)

    def _write(self, one: Seen | Cut) -> None:
        with self._file.open("ab") as file:
            file.write(msgspec.json.encode(one) + b"\n")
