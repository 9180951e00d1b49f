"""What a list is narrowed to, one page of it, and the cursor that the next page begins behind."""

import base64
import binascii
import re

from msgspec import Struct

from bus.interface import VersionedRecord
from edge.core.clock import micros
from edge.core.validation import input_invalid_problem
from schemas.job import Job
from schemas.problems import FieldError
from schemas.status import Priority, Status

DEFAULT_PAGE_LIMIT = 50
PAGE_LIMIT = 500
_CURSOR = re.compile(r"(?P<created_us>-?[0-9]{1,18})\.(?P<name>.+)\Z", re.DOTALL)  # what SQLite can compare with


class JobFilters(Struct, frozen=True):
    """What a list is narrowed to; None and empty: anything."""

    status: Status | None = None
    endpoint: str | None = None
    priority: Priority | None = None
    tags: tuple[tuple[str, str], ...] = ()


class RecordPage(Struct, frozen=True):
    """One page of a list, newest first; `next_cursor` None: the last one."""

    records: tuple[VersionedRecord, ...]
    next_cursor: str | None


def encode_cursor(created_us: int, name: str) -> str:
    """A cursor that names the last row given, so that new rows never shift the pages."""
    return base64.urlsafe_b64encode(f"{created_us}.{name}".encode()).decode().rstrip("=")


def make_job_cursor(job: Job) -> str:
    """The cursor behind `job`."""
    return encode_cursor(micros(job.created_at), job.id)


def decode_cursor(text: str) -> tuple[int, str]:
    """Creation in microseconds and name of the last row given. Raises Refused `input_invalid`."""
    try:
        decoded = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except (binascii.Error, ValueError):
        decoded = ""
    match = _CURSOR.match(decoded)
    if match is None:
        raise input_invalid_problem(
            FieldError("cursor", "is not one that this server gave: leave it out to start anew")
        )
    return int(match["created_us"]), match["name"]
