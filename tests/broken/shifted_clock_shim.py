"""The shim beside a job, on the calendar of tests/broken/shifted_clock.py.

It uses the standard library only, as the shim does.
"""

import os
import runpy
import time
from pathlib import Path

SHIM = Path(__file__).resolve().parents[2] / "runner" / "engines" / "process_shim.py"
REAL = time.time


def shift_s() -> float:
    """Return the seconds by which the calendar is ahead."""
    return float(Path(os.environ["CALENDAR"]).read_text())


def shifted_time() -> float:
    """Return the shifted `time.time`."""
    return REAL() + shift_s()


if __name__ == "__main__":
    time.time = shifted_time
    runpy.run_path(str(SHIM), run_name="__main__")
