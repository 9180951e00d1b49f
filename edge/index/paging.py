"""Filters, pages and cursors of lists."""

import base64
import binascii
import re

from msgspec import Struct

from bus.interface import VersionedRecord
from edge.core.clock import micros
from edge.core.validation import input_invalid_problem
from schemas.job import Job, Moment
from schemas.problems import FieldError
from schemas.status import Priority, Status

DEFAULT_PAGE_LIMIT = 50
PAGE_LIMIT = 500
_CURSOR = re.compile(r"(?P<created_us>-?[0-9]{1,18})\.(?P<name>.+)\Z", re.DOTALL)  # an integer that SQLite can compare


class JobFilters(Struct, frozen=True):
    """The conditions of a list of jobs; None and empty: no condition.

    `statuses`: any of them. `code`: of the failure. `text`: occurs in the id, the input, a tag's value or the error
    message, in any case. `created_from`: at this time or later. `created_to`: before it.
    """

    statuses: tuple[Status, ...] = ()
    endpoint: str | None = None
    priority: Priority | None = None
    tags: tuple[tuple[str, str], ...] = ()
    code: str | None = None
    text: str | None = None
    created_from: Moment | None = None
    created_to: Moment | None = None


class RecordPage(Struct, frozen=True):
    """One page of a list, newest first. The last page has no `next_cursor`."""

    records: tuple[VersionedRecord, ...]
    next_cursor: str | None


def encode_cursor(created_us: int, name: str) -> str:
    """Return a cursor that names the last row of a page, so that new rows do not shift the next pages."""
    return base64.urlsafe_b64encode(f"{created_us}.{name}".encode()).decode().rstrip("=")


def make_job_cursor(job: Job) -> str:
    """Return the cursor of the page that starts after `job`."""
    return encode_cursor(micros(job.created_at), job.id)


def decode_cursor(text: str) -> tuple[int, str]:
    """Return creation time (µs) and name of the last row of the page before. Raises ProblemError `input_invalid`."""
    try:
        decoded = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except (binascii.Error, ValueError):
        decoded = ""
    match = _CURSOR.match(decoded)
    if match is None:
        raise input_invalid_problem(
            FieldError("cursor", "is not a cursor of this server: leave it out to start with the first page")
        )
    return int(match["created_us"]), match["name"]
