"""What a list is narrowed to, one page of it, and the cursor that the next page begins behind."""

import base64
import binascii

from msgspec import Struct

from bus.port import Entry
from edge.services.clock import micros
from edge.services.inputs import invalid
from schemas.errors import FieldError
from schemas.job import Job
from schemas.words import Priority, Status

PAGE = 50
PAGE_MAX = 500


class Filters(Struct, frozen=True):
    """What a list is narrowed to; None and empty: anything."""

    status: Status | None = None
    endpoint: str | None = None
    priority: Priority | None = None
    tags: tuple[tuple[str, str], ...] = ()


class Page(Struct, frozen=True):
    """One page of a list, newest first; `next_cursor` None: the last one."""

    entries: tuple[Entry, ...]
    next_cursor: str | None


def write_cursor(created_us: int, name: str) -> str:
    """A cursor that names the last row given, so that new rows never shift the pages."""
    return base64.urlsafe_b64encode(f"{created_us}.{name}".encode()).decode().rstrip("=")


def job_cursor(job: Job) -> str:
    """The cursor behind `job`."""
    return write_cursor(micros(job.created_at), job.id)


def read_cursor(text: str) -> tuple[int, str]:
    """Creation in microseconds and name of the last row given. Raises Refused `input_invalid`."""
    try:
        created, _, name = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode().partition(".")
        return int(created), name
    except (binascii.Error, ValueError) as error:
        raise invalid(FieldError("cursor", "is not one that this server gave: leave it out to start anew")) from error
