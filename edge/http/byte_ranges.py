"""Parse the Range header (RFC 9110, section 14) for assets that are not a local file."""

import re
from typing import NamedTuple

# No file has a size of more than 18 digits.
_RANGE_PATTERN = r"(\d{1,18}-\d{0,18}|-\d{1,18})"
_RANGE_LIST_PATTERN = re.compile(rf"bytes=\s*{_RANGE_PATTERN}(\s*,\s*{_RANGE_PATTERN})*\s*\Z", re.ASCII | re.IGNORECASE)


class ByteRange(NamedTuple):
    """Bytes from `start` to before `stop`."""

    start: int
    stop: int


class RangeNotSatisfiable(Exception):
    """The range lies outside the file (416)."""


def is_valid_range(header: str) -> bool:
    """Return whether the header is well-formed. A malformed one is ignored, not rejected (section 14.2)."""
    if not _RANGE_LIST_PATTERN.match(header):
        return False
    ends = (one.strip().split("-") for one in header.partition("=")[2].split(","))
    return all(not (first and last) or int(first) <= int(last) for first, last in ends)


def parse_single_range(header: str | None, size: int) -> ByteRange | None:
    """Return the range of the header, cut to `size`. Raises RangeNotSatisfiable.

    None stands for the whole file: no range, several ranges, or a malformed header.
    """
    if header is None or "," in header or not is_valid_range(header):
        return None
    first, last = header.partition("=")[2].strip().split("-")
    stop = min(int(last) + 1, size) if first and last else size
    span = ByteRange(int(first) if first else max(0, size - int(last)), stop)
    if span.start >= size or span.start >= span.stop:
        raise RangeNotSatisfiable
    return span
