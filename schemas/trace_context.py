"""The trace context of W3C (`traceparent`), which clients send with a submit and images find in job.json."""

import re
from typing import NamedTuple

TRACEPARENT_HEADER = "traceparent"
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z", re.ASCII)
_NO_TRACE, _NO_SPAN, _INVALID_VERSION, _FIRST_VERSION = "0" * 32, "0" * 16, "ff", "00"
_SAMPLED_FLAG = 0x01


class TraceContext(NamedTuple):
    """The ids of a trace and of a span, 32 and 16 lower-case hexadecimal digits, and whether the trace is recorded."""

    trace_id: str
    span_id: str
    is_sampled: bool

    @property
    def traceparent(self) -> str:
        """The context as a header of version 00."""
        return f"{_FIRST_VERSION}-{self.trace_id}-{self.span_id}-{'01' if self.is_sampled else '00'}"


def parse_traceparent(text: str) -> TraceContext | None:
    """Return the context of a `traceparent`; None if it is invalid (Trace Context, section 3.2.2)."""
    found = _TRACEPARENT.match(text.strip())
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    if version == _INVALID_VERSION or (version == _FIRST_VERSION and more) or trace == _NO_TRACE or span == _NO_SPAN:
        return None
    return TraceContext(trace, span, is_sampled=bool(int(flags, 16) & _SAMPLED_FLAG))


def normalize_traceparent(text: str) -> str | None:
    """Return a `traceparent` in version 00; None if it is invalid."""
    context = parse_traceparent(text)
    return None if context is None else context.traceparent
