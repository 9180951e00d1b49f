"""What one life of the runner leaves for the next about a job: one small file in the job's folder, replaced whole.

Notes are written down before they are published. The next life says exactly these again, under the same places, and
the broker drops what it has: so nothing is lost between the writing and the publishing, and nothing is said twice.
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct
from msgspec.structs import replace
from structlog.typing import FilteringBoundLogger

from runner.engines.port import Mark
from runner.logtail import Tail
from runner.uptime import Begun, Uptime
from runner.verdict import Intent
from schemas.container import ErrorLine
from schemas.feed import Note

T = TypeVar("T")

FILE = "journal.json"


class Journal(Struct, frozen=True, kw_only=True):
    """`started_at` and `started_up`: when the container began its job, on two clocks.

    `mark`: where to take the output up again; lines before it are wholly dealt with.

    Of the lines behind it, those up to `log_offset` and `progress_offset` have been said. `log_bytes` counts what was
    published of the log. `pending` are the notes that may not have reached the broker. `said` is the last error line,
    `tail` the last lines of stderr. `disk` is why the job used too much disk, where that is the intent.
    """

    started_at: datetime | None = None
    started_up: Uptime | None = None
    intent: Intent | None = None
    mark: Mark | None = None
    log_offset: int = 0
    progress_offset: int = 0
    log_bytes: int = 0
    pending: tuple[Note, ...] = ()
    said: ErrorLine | None = None
    disk: str | None = None
    tail: Tail = Tail()

    @property
    def begun(self) -> Begun | None:
        """When the container began its job."""
        return None if self.started_at is None else Begun(self.started_at, self.started_up)


_decode = msgspec.json.Decoder(Journal).decode


def read(folder: Path) -> Journal:
    """The journal in `folder`; a blank one where there is none or it cannot be read (the output is then re-read)."""
    try:
        return _decode((folder / FILE).read_bytes())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, msgspec.DecodeError):
        return Journal()


def write(folder: Path, journal: Journal) -> None:
    """Replace the journal at once, in a folder that may be new.

    Not synced: it is of use only while the host, and so the container, stays up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f"{FILE}.new"
    new.write_bytes(msgspec.json.encode(journal))
    new.replace(folder / FILE)


class Diary:
    """The journal of a job that this life runs: what it says now, and the one way to change it.

    A file that cannot be written is told in `log`, and no reason to give a job up: should this life end before the disk
    has room, the next one reads some output again.
    """

    def __init__(self, folder: Path, log: FilteringBoundLogger) -> None:
        self._folder = folder
        self._log = log
        self._lock = anyio.Lock()
        self.now = Journal()

    async def open(self) -> None:
        """Take up what an earlier life wrote. A new attempt has nothing to take up."""
        self.now = await anyio.to_thread.run_sync(read, self._folder)

    async def note(self, **changes: Any) -> None:
        """Change fields of the journal; returns when the file says so, or cannot."""
        try:
            await self.note_and(_nothing, **changes)
        except OSError as error:
            self._log.warning("journal not written", why=str(error))

    async def note_and(self, then: Callable[[], T], **changes: Any) -> T:
        """The same, then `then` in the same thread: what must not be done before it is written down. Its answer.

        Raises OSError when it cannot be written; `then` was not called.
        """
        async with self._lock:
            self.now = replace(self.now, **changes)
            return await anyio.to_thread.run_sync(_write_and, self._folder, self.now, then)


def _write_and(folder: Path, journal: Journal, then: Callable[[], T]) -> T:
    write(folder, journal)
    return then()


def _nothing() -> None:
    """Nothing has to follow."""
