"""Spans of jobs, which edge and runner send to a tracing system by OTLP; without one, `NO_SPANS` does nothing.

A span has a name, a time, attributes, and the `traceparent` of the span around it: the trace context of W3C, which
clients send with a submit and images find in job.json. The one that a client sent with its request is a context
variable, so that no service passes it along.
"""

import re
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import partial
from typing import Annotated, NamedTuple, Protocol

import anyio.to_thread
from msgspec import Meta, Struct

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


SpanValue = str | int | float | bool
OTLP_MODULE = "opentelemetry"
EXTRA = "lamplighter-server[traces]"


class TraceSettings(Struct, frozen=True):
    """The `[traces]` section: where the spans of jobs are sent."""

    endpoint: Annotated[str, Meta(pattern=r"^(https?://.+)?$", description="an http or https URL, or empty")] = ""
    """Address of an OTLP receiver over HTTP, as in `http://127.0.0.1:4318`. Empty: no spans are recorded."""


class TracesUnavailable(Exception):
    """Spans cannot be recorded with these settings. The message says what to do."""


class OpenSpan(Protocol):
    """A span that has begun. `traceparent`: what spans inside it have as their parent; None without a trace."""

    @property
    def traceparent(self) -> str | None: ...

    def set(self, **attributes: SpanValue) -> None:
        """Add attributes; a name that is there already gets the new value."""
        ...

    def fail(self, error: str) -> None:
        """Mark the span as failed, for this reason."""
        ...

    def end(self) -> None:
        """End the span now; a second call changes nothing."""
        ...


class SpanRecorder(Protocol):
    """Records spans. No method blocks or fails because the receiver is away."""

    def start(self, name: str, parent: str | None, **attributes: SpanValue) -> OpenSpan:
        """Begin a span now. Without a parent it begins a trace."""
        ...

    def record(
        self, name: str, parent: str | None, start: datetime, end: datetime, **attributes: SpanValue
    ) -> str | None:
        """Record a span that is over; return its `traceparent`."""
        ...


class PassedContext:
    """A span that is not recorded. It passes on the context that it was given."""

    def __init__(self, parent: str | None) -> None:
        self.traceparent = parent

    def set(self, **attributes: SpanValue) -> None:
        pass

    def fail(self, error: str) -> None:
        pass

    def end(self) -> None:
        pass


class NoSpans:
    """The recorder while traces are off: every span passes on its parent."""

    def start(self, name: str, parent: str | None, **attributes: SpanValue) -> OpenSpan:
        """Return a span that passes on `parent`."""
        return PassedContext(parent)

    def record(
        self, name: str, parent: str | None, start: datetime, end: datetime, **attributes: SpanValue
    ) -> str | None:
        """Record nothing: the parent of the next span stays `parent`."""
        return parent


NO_SPANS = NoSpans()


@contextmanager
def span(recorder: SpanRecorder, name: str, parent: str | None, **attributes: SpanValue) -> Iterator[OpenSpan]:
    """Record the block as a span, as failed if it raises. The error's text may be secret, so only its kind is kept."""
    opened = recorder.start(name, parent, **attributes)
    try:
        yield opened
    except BaseException as error:
        opened.fail(type(error).__name__)
        raise
    finally:
        opened.end()


@asynccontextmanager
async def open_spans(settings: TraceSettings, service: str, instance: str = "") -> AsyncIterator[SpanRecorder]:
    """Yield the recorder for the settings, and send what it has at the end. Raises TracesUnavailable.

    `service`: the name of this process in traces. `instance`: which of several, such as the host.
    """
    if not settings.endpoint:
        yield NO_SPANS
        return
    try:
        from bus.otlp import OtlpSpans  # noqa: PLC0415 - an optional extra, and a slow import
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != OTLP_MODULE:
            raise
        why = (
            f"traces.endpoint is set, but OpenTelemetry is not installed: pip install '{EXTRA}', or remove the setting"
        )
        raise TracesUnavailable(why) from error
    spans = OtlpSpans(settings.endpoint, service, instance)
    try:
        yield spans
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(partial(spans.close))


_HEADER = TRACEPARENT_HEADER.encode()
_current: ContextVar[str | None] = ContextVar("traceparent", default=None)


def enter_trace(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Keep the `traceparent` of these headers for the rest of this task; an invalid one counts as none."""
    for name, value in headers:
        if name == _HEADER:
            _current.set(normalize_traceparent(value.decode("latin-1")))
            return


def current_traceparent() -> str | None:
    """Return the context that the client sent with the request of this task; None if it sent none."""
    return _current.get()
