"""The figures of a bench. Each is printed with its target, as a JSON line and as a table row."""

import json
import statistics
from collections.abc import Sequence

from msgspec import Struct


class Figure(Struct, frozen=True):
    """One figure. `aim` is the limit of `value`: a minimum with `least`, otherwise a maximum. None means no target."""

    bench: str
    what: str
    value: float
    unit: str
    aim: float | None = None
    least: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the value meets the target; None without a target."""
        if self.aim is None:
            return None
        return self.value >= self.aim if self.least else self.value <= self.aim


def print_figure(row: Figure) -> None:
    """Print the figure as a JSON line and as a table row."""
    fields = {"bench": row.bench, "what": row.what, "value": round(row.value, 3), "unit": row.unit}
    print(json.dumps(fields | {"aim": row.aim, "met": row.met, "note": row.note}), flush=True)
    sign = {True: "met", False: "MISSED", None: ""}[row.met]
    aim = "" if row.aim is None else f"{'≥' if row.least else '≤'} {row.aim:g}"
    print(f"| {row.bench} | {row.what} | {row.value:.3g} {row.unit} | {aim} | {sign} | {row.note} |", flush=True)


def p50(values: Sequence[float]) -> float:
    """Return the median of `values`."""
    return statistics.median(values)


def p99(values: Sequence[float]) -> float:
    """Return the value that one in a hundred exceeds."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
