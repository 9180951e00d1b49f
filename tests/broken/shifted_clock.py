"""`lamplighter` by a calendar of its own: off by the seconds that stand in the file $CALENDAR. What passes, passes.

The clock of a machine is everybody's, and a time namespace has no calendar. So what reads one here reads another: three
modules their dates, everybody `time.time`, and the shim beside a job, which is a program of its own, likewise.
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
    """Tells no time of its own, only whoever asks what time it is there."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + timedelta(seconds=shifted_clock_shim.shift_s())


def _write_shim() -> Path:
    """A shim that knows the calendar: it inherits nothing of our environment."""
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
