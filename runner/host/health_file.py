"""The health file of a process that listens nowhere: a container or a script looks at how old it is.

The runner renews it after each heartbeat, the relay while it is connected to an edge.
"""

import time
from pathlib import Path

import anyio.to_thread
import structlog

RENEW_INTERVAL_S = 5.0
MAX_AGE_S = 30.0  # a runner renews every 3 s, and an outage of a few seconds is no fault

_log = structlog.get_logger()


class HealthFile:
    """A file whose time of modification says when the process last did its work. Without a path, nothing is written."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    async def renew(self) -> None:
        """Set the file's time to now. A file that cannot be written grows old, and the log says why."""
        if self._path is not None:
            try:
                await anyio.to_thread.run_sync(self._path.touch, 0o644)
            except OSError as error:
                _log.warning("health_file_not_written", file=str(self._path), error=str(error))


NO_HEALTH_FILE = HealthFile(None)


def fault_of(path: Path | None, now: float | None = None) -> str | None:
    """Return why the process with this health file is not healthy, None if it is. `now`: seconds since the epoch."""
    if path is None:
        return "health_file is not set: set it for the process and for this command, as LAMPLIGHTER_HEALTH_FILE"
    try:
        age_s = (time.time() if now is None else now) - path.stat().st_mtime
    except OSError as error:
        return f"{path} cannot be read ({error.strerror}): the process has not connected yet, or names another file"
    if age_s > MAX_AGE_S:
        return f"{path} was last renewed {age_s:.0f} s ago: the process hangs or has lost its connection; read its log"
    return None
