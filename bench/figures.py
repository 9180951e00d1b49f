"""What a bench answers: one JSON line and one table row a figure, with the aim beside it."""

import json
import statistics
from collections.abc import Sequence

from msgspec import Struct


class Figure(Struct, frozen=True):
    """One figure. `aim` is a bound on `value`: at least it where `least`, else at most it; None: no aim was set."""

    bench: str
    what: str
    value: float
    unit: str
    aim: float | None = None
    least: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the aim is met."""
        if self.aim is None:
            return None
        return self.value >= self.aim if self.least else self.value <= self.aim


def print_figure(row: Figure) -> None:
    """Print both forms."""
    fields = {"bench": row.bench, "what": row.what, "value": round(row.value, 3), "unit": row.unit}
    print(json.dumps(fields | {"aim": row.aim, "met": row.met, "note": row.note}), flush=True)
    sign = {True: "met", False: "MISSED", None: ""}[row.met]
    aim = "" if row.aim is None else f"{'≥' if row.least else '≤'} {row.aim:g}"
    print(f"| {row.bench} | {row.what} | {row.value:.3g} {row.unit} | {aim} | {sign} | {row.note} |", flush=True)


def p50(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def p99(values: Sequence[float]) -> float:
    """The value that one in a hundred exceeds."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
