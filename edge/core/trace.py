"""The trace context of the request that is served, as a context variable: no service passes it along."""

from collections.abc import Iterable
from contextvars import ContextVar

from schemas.trace_context import TRACEPARENT_HEADER, normalize_traceparent

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
