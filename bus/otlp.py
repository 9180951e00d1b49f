"""Spans sent by OTLP over HTTP, with OpenTelemetry's SDK in a thread of its own.

The task that records a span only puts it into a queue. Making the SDK's span and encoding it takes 0.1 ms and more.
At most QUEUE_LIMIT spans wait for the receiver. While it is away, the oldest are dropped: jobs do not wait for it.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime

import requests
from msgspec import Struct
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from bus.spans import OpenSpan, PassedContext, SpanValue, TraceContext, parse_traceparent
from schemas.outbound_rules import is_loopback_url
from schemas.version import VERSION

TRACES_PATH = "/v1/traces"
QUEUE_LIMIT = 4096
BATCH_LIMIT = 512
BATCH_INTERVAL_S = 1.0
EXPORT_TIMEOUT_S = 3.0  # of one request with its retries
CLOSE_TIMEOUT_S = 1.5  # for the last spans; a request that is on its way may take EXPORT_TIMEOUT_S
LOG_INTERVAL_S = 60.0
_PREFIX = "lamplighter."  # of the names of our attributes
_NS_PER_S = 1_000_000_000
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SCOPE = InstrumentationScope("lamplighter", VERSION)


def _to_ns(moment: datetime) -> int:
    return int(moment.timestamp() * _NS_PER_S)


class _QueuedSpan(Struct):
    """A span of which nothing is computed yet. `end_ns` is set when it ends, and then it is queued."""

    name: str
    context: TraceContext
    parent_id: str | None
    start_ns: int
    attributes: dict[str, SpanValue]
    queue: deque["_QueuedSpan"]
    end_ns: int | None = None
    error: str | None = None

    @property
    def traceparent(self) -> str | None:
        return self.context.traceparent

    def set(self, **attributes: SpanValue) -> None:
        self.attributes |= attributes

    def fail(self, error: str) -> None:
        self.error = error

    def end(self) -> None:
        self.end_at(time.time_ns())

    def end_at(self, at_ns: int) -> None:
        """End the span at this time. A full queue drops its oldest span."""
        self.end_ns = at_ns
        self.queue.append(self)


class _ThrottledLog(logging.Filter):
    """Passes one record a minute: the exporter reports every batch that it cannot send."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._next_at = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._monotonic()
        if now < self._next_at:
            return False
        self._next_at = now + LOG_INTERVAL_S
        return True


def _throttle_log() -> None:
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("opentelemetry.")]:
        logger = logging.getLogger(name)
        if not any(isinstance(one, _ThrottledLog) for one in logger.filters):
            logger.addFilter(_ThrottledLog())


class OtlpSpans:
    """The recorder that sends spans to `endpoint`. `close` sends the last ones and blocks meanwhile."""

    def __init__(self, endpoint: str, service: str, instance: str = "") -> None:
        session = requests.Session()
        session.trust_env = not is_loopback_url(endpoint)  # a proxy is not asked for this machine's own address
        self._exporter = OTLPSpanExporter(endpoint.rstrip("/") + TRACES_PATH, timeout=EXPORT_TIMEOUT_S, session=session)
        self._resource = Resource.create(
            {"service.name": service, "service.version": VERSION, "service.instance.id": instance}
        )
        self._queue: deque[_QueuedSpan] = deque(maxlen=QUEUE_LIMIT)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._send_until_closed, name="spans", daemon=True)
        _throttle_log()
        self._thread.start()

    def start(self, name: str, parent: str | None, **attributes: SpanValue) -> OpenSpan:
        """Begin a span; without a valid parent it begins a trace."""
        return self._begin(name, parent, time.time_ns(), attributes) or PassedContext(parent)

    def record(
        self, name: str, parent: str | None, start: datetime, end: datetime, **attributes: SpanValue
    ) -> str | None:
        """Record a span that is over; return its `traceparent`."""
        begun = self._begin(name, parent, _to_ns(start), attributes)
        if begun is None:
            return parent
        begun.end_at(_to_ns(end))
        return begun.traceparent

    def _begin(
        self, name: str, parent: str | None, start_ns: int, attributes: dict[str, SpanValue]
    ) -> _QueuedSpan | None:
        """Return a span that has begun; None if the trace of `parent` is not sampled."""
        around = parse_traceparent(parent) if parent else None
        if around is not None and not around.is_sampled:
            return None
        trace_id = f"{random.getrandbits(128) or 1:032x}" if around is None else around.trace_id
        context = TraceContext(trace_id, f"{random.getrandbits(64) or 1:016x}", is_sampled=True)
        return _QueuedSpan(name, context, around and around.span_id, start_ns, attributes, self._queue)

    def _send_until_closed(self) -> None:
        while not self._closing.wait(BATCH_INTERVAL_S):
            self._send_queued()
        self._send_queued()

    def _send_queued(self) -> None:
        while batch := [self._queue.popleft() for _ in range(min(BATCH_LIMIT, len(self._queue)))]:
            self._exporter.export([self._to_sdk(span) for span in batch])  # it logs what it could not send

    def _to_sdk(self, span: _QueuedSpan) -> ReadableSpan:
        trace_id = int(span.context.trace_id, 16)
        return ReadableSpan(
            span.name,
            context=SpanContext(trace_id, int(span.context.span_id, 16), is_remote=False, trace_flags=_SAMPLED),
            parent=None if span.parent_id is None else SpanContext(trace_id, int(span.parent_id, 16), is_remote=True),
            resource=self._resource,
            attributes={f"{_PREFIX}{name}": value for name, value in span.attributes.items()},
            kind=SpanKind.INTERNAL,
            status=Status() if span.error is None else Status(StatusCode.ERROR, span.error),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=_SCOPE,
        )

    def close(self) -> None:
        """Send the last spans, and stop the thread."""
        self._closing.set()
        self._thread.join(CLOSE_TIMEOUT_S)
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # ends its retries
        self._thread.join(EXPORT_TIMEOUT_S)
