"""The health file of a process that listens nowhere: a container or a script looks at how old it is.

The runner renews it after each heartbeat, the relay while it is connected to an edge. `lamplighter health` reads it.
"""

from pathlib import Path

import anyio.to_thread
import structlog

RENEW_INTERVAL_S = 5.0

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
