"""From bytes of STATE to what the port gives; both buses use it."""

from bus.port import Entry
from schemas.events import Recorded, RecordUnreadable, decode


def entry(revision: int, data: bytes) -> Entry:
    """The record as read; raises RecordUnreadable."""
    return Entry(revision, decode(data))


def readable(data: bytes) -> Recorded | None:
    """The record, None for a delete marker and for rubbish: a stream of changes must not die of one bad record."""
    try:
        return decode(data)
    except RecordUnreadable:
        return None
