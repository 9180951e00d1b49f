"""How long a run takes, told by those that have ended. Pure: nothing here knows a clock, a job or a card.

Where the endpoint names the seconds of its input, runs are compared by their seconds per second of input; where it
does not, or one of the two sides has no size, by the whole run.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

LEAST = 3  # runs: fewer say nothing
USUAL, SLOW = 0.5, 0.9


class Run(NamedTuple):
    """One that ended well: its seconds, its seconds of input where they are known, the card it had ("": none)."""

    seconds: float
    size: float | None = None
    card: str = ""


class Pace(NamedTuple):
    """Runs in ascending order: seconds each, and seconds for each second of input."""

    whole: tuple[float, ...] = ()
    rates: tuple[float, ...] = ()


class Spread(NamedTuple):
    """Seconds from the start of a run to its end: half of the runs take no longer than `p50`; `samples` runs told."""

    p50: float
    p90: float
    samples: int


def pace(runs: Iterable[Run]) -> Pace:
    """The pace of these runs."""
    told = list(runs)
    rates = (run.seconds / run.size for run in told if run.size)
    return Pace(tuple(sorted(run.seconds for run in told)), tuple(sorted(rates)))


def spread(of: Pace, size: float | None = None, elapsed: float = 0.0) -> Spread | None:
    """How long a run with `size` seconds of input takes in all, None when too few have told.

    One that runs for `elapsed` seconds already is measured by those that took longer than that; by none of them it
    may end at any moment.
    """
    by_size = bool(size) and len(of.rates) >= LEAST
    samples, unit = (of.rates, size or 1.0) if by_size else (of.whole, 1.0)
    if len(samples) < LEAST:
        return None
    longer = samples[bisect_right(samples, elapsed / unit) :] if elapsed else samples
    p50, p90 = (max(elapsed, quantile(longer, q) * unit) if longer else elapsed for q in (USUAL, SLOW))
    return Spread(p50, p90, len(samples))


def quantile(ascending: Sequence[float], q: float) -> float:
    """The value below which the share `q` of them lies, between the two nearest in proportion."""
    place = q * (len(ascending) - 1)
    below = int(place)
    above = min(below + 1, len(ascending) - 1)
    return ascending[below] + (ascending[above] - ascending[below]) * (place - below)


def queue_s(ahead: int, running: int, slots: int, usual_s: float) -> float:
    """Seconds until a slot is free for a job with `ahead` others before it.

    What runs now is half done on average, and every slot takes the next job when it is free.
    """
    if ahead + running < slots:
        return 0.0
    return (ahead + running / 2) / max(1, slots) * usual_s
