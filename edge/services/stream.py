"""What a stream of events carries, and the id by which a client resumes it (PROTOCOLS 1, `events`)."""

import re
from datetime import datetime
from typing import Literal

from msgspec import Struct

from schemas.view import JobView

Kind = Literal["state", "progress", "log", "notice"]


class ProgressEvent(Struct, frozen=True):
    """How far a job is; `offset` rises through an attempt's output."""

    job_id: str
    at: datetime
    round: int
    attempt: int
    offset: int
    fraction: float
    stage: str | None
    done: int | None
    total: int | None


class LogEvent(Struct, frozen=True):
    """A piece of a job's output."""

    job_id: str
    at: datetime
    round: int
    attempt: int
    offset: int
    stream: str
    text: str


class NoticeEvent(Struct, frozen=True):
    """Something happened to a host."""

    kind: str
    host: str
    message: str
    at: datetime


EventData = JobView | ProgressEvent | LogEvent | NoticeEvent


class StreamItem(Struct, frozen=True):
    """One message of a stream. `id` goes back to `events` as `after`; a notice has the id of what came before it."""

    id: str
    kind: Kind
    data: EventData


class Bookmark(Struct, frozen=True):
    """Where a stream stands: FEED's own id, and the newest revision of STATE that was given.

    FEED reads STATE at every opening, so without the revision a client that resumes would get its last state twice.
    """

    feed: str
    revision: int = 0

    @property
    def epoch(self) -> str:
        """The life of FEED that the id belongs to."""
        return self.feed.partition("-")[0]

    @property
    def sequence(self) -> int:
        """The place in that life."""
        return int(self.feed.rpartition("-")[2])

    def __str__(self) -> str:
        return f"{self.feed}-{self.revision}"


# <epoch>-<FEED sequence>, and the revision behind it; both are counted in eight bytes.
_ID = re.compile(r"(?P<feed>[^-]{1,64}-[0-9]{1,18})(?:-(?P<revision>[0-9]{1,18}))?\Z")


def read_bookmark(text: str | None) -> Bookmark | None:
    """The bookmark that a client sent; an id it cannot have from us stands for the start."""
    match = _ID.match(text or "")
    return Bookmark(match["feed"], int(match["revision"] or 0)) if match else None
