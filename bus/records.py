"""From bytes of STATE to what the port gives; both buses use it."""

from bus import subjects
from bus.outgoing import Letter
from bus.port import Entry
from schemas.events import Recorded, RecordUnreadable, decode


def entry(revision: int, data: bytes) -> Entry:
    """The record as read; raises RecordUnreadable."""
    return Entry(revision, decode(data))


def read_letter(subject: str, data: bytes) -> Letter | None:
    """A letter of DELIVERIES: its subject says which, its body is the record. None when it is none."""
    which, recorded = subjects.parse_letter(subject), readable(data)
    return None if which is None or recorded is None else Letter(which[0], recorded, which[1])


def readable(data: bytes) -> Recorded | None:
    """The record, None for a delete marker and for rubbish: a stream of changes must not die of one bad record."""
    try:
        return decode(data)
    except RecordUnreadable:
        return None
