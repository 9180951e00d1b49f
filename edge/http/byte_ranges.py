"""The Range header (RFC 9110, section 14), for bytes that do not lie in a file of this machine."""

import re
from typing import NamedTuple

# Eighteen digits are more than any file has.
_RANGE_PATTERN = r"(\d{1,18}-\d{0,18}|-\d{1,18})"
_RANGE_LIST_PATTERN = re.compile(rf"bytes=\s*{_RANGE_PATTERN}(\s*,\s*{_RANGE_PATTERN})*\s*\Z", re.ASCII | re.IGNORECASE)


class ByteRange(NamedTuple):
    """Bytes from `start` to before `stop`."""

    start: int
    stop: int


class RangeNotSatisfiable(Exception):
    """Nothing of what was asked for is there (416)."""


def is_valid_range(asked: str) -> bool:
    """Whether the header can be read; one that cannot is ignored, not refused (14.2)."""
    if not _RANGE_LIST_PATTERN.match(asked):
        return False
    ends = (one.strip().split("-") for one in asked.partition("=")[2].split(","))
    return all(not (first and last) or int(first) <= int(last) for first, last in ends)


def parse_single_range(asked: str | None, size: int) -> ByteRange | None:
    """The one range asked for, cut to `size`. None, which means all: no range, several, or none that can be read.

    Raises Unsatisfiable.
    """
    if asked is None or "," in asked or not is_valid_range(asked):
        return None
    first, last = asked.partition("=")[2].strip().split("-")
    stop = min(int(last) + 1, size) if first and last else size
    span = ByteRange(int(first) if first else max(0, size - int(last)), stop)
    if span.start >= size or span.start >= span.stop:
        raise RangeNotSatisfiable
    return span
