"""`lamplighter` with a shifted calendar: ahead by the seconds in the file $CALENDAR. Elapsed time is not changed.

The machine's clock cannot be set for one test, and a time namespace has no calendar. So three modules read another
`datetime`, all modules another `time.time`, and the shim beside a job, which is a program of its own, as well.
"""

import os
import time
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import bus.open
import edge.core.clock
import runner.app
from runner.engines import process_shim
from tests.broken import shifted_clock_shim

SHIFTED_MODULES = (bus.open, edge.core.clock, runner.app)
SHIM = Path(__file__).with_name("shifted_clock_shim.py")


class ShiftedDatetime(datetime):
    """A `datetime` whose `now` is shifted."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + timedelta(seconds=shifted_clock_shim.shift_s())


def _write_shim() -> Path:
    """Write a shim that knows the calendar file: the shim inherits nothing of our environment."""
    calendar = os.environ["CALENDAR"]
    made = Path(calendar).with_name(f"shim-{os.getpid()}.py")
    told = (
        f"import os, runpy\nos.environ['CALENDAR'] = {calendar!r}\nrunpy.run_path({str(SHIM)!r}, run_name='__main__')\n"
    )
    made.write_text(told)
    return made


if __name__ == "__main__":
    for module in SHIFTED_MODULES:
        module.datetime = ShiftedDatetime  # type: ignore[attr-defined]
    time.time = shifted_clock_shim.shifted_time
    process_shim.__file__ = str(_write_shim())
    from lamplighter.cli import main

    main()
