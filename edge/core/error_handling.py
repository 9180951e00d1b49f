"""Two borders for exceptions: errors of the broker and the store become problems for clients, bugs become log entries.

Expected errors are caught by name where they happen. `log_and_continue` is for bugs: without it, one job that the
edge misreads would end the edge, and again at each restart.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import structlog

from bus import interface as bus
from edge.store import port as store
from schemas.events import RecordUnreadable
from schemas.problems import ProblemError

UNAVAILABLE_RETRY_AFTER_S = 5

# The first class that matches decides. Text None: the error's own text is meant for the client.
_PROBLEMS_BY_ERROR: Mapping[type[Exception], tuple[str, str | None]] = {
    bus.BrokerFull: ("store_full", "the broker's store is full: delete jobs or give it more space, then try again"),
    bus.BrokerUnreachable: (
        "unavailable",
        "the broker does not answer: try again, with the same key or id nothing doubles; /readyz says what is wrong",
    ),
    bus.RevisionConflict: ("unavailable", "other requests keep changing this at the same time: try again"),
    bus.MessageTooLarge: ("body_too_large", "the request is larger than the broker accepts: move data into assets"),
    bus.BrokerDenied: ("internal", "the broker user of the edge lacks a permission: check nats.conf"),
    bus.RowUnreadable: (
        "internal",
        "a stored row cannot be read: the edge's log names it; delete it or write it again",
    ),
    RecordUnreadable: ("internal", "the stored record cannot be read: a newer version may have written it"),
    store.DigestMismatch: ("digest_mismatch", None),
    store.AssetTooLarge: ("body_too_large", None),
    store.AssetStoreFull: ("store_full", None),
    store.StoreBroken: ("unavailable", None),
    store.UploadChanged: ("offset_mismatch", None),
    store.UploadRemoved: ("not_found", None),
}

_log = structlog.get_logger()


def problem_for_known_error(error: Exception) -> ProblemError | None:
    """Return the problem for `error`, or None for an error that is not in the table: a bug."""
    for kind, (code, text) in _PROBLEMS_BY_ERROR.items():
        if isinstance(error, kind):
            retry = UNAVAILABLE_RETRY_AFTER_S if code == "unavailable" else None
            return ProblemError(code, text or str(error), retry_after_s=retry)
    return None


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise ProblemError in place of the errors that the table names."""
    try:
        yield
    except tuple(_PROBLEMS_BY_ERROR) as error:
        problem = problem_for_known_error(error)
        if problem is None:
            raise
        raise problem from error


@contextmanager
def log_and_continue(event: str, *reraised: type[Exception], **fields: str) -> Iterator[None]:
    """Log an exception of the block with its traceback, as `event` with `fields`, and continue after the block.

    Exceptions of the classes `reraised` are not caught.
    """
    try:
        yield
    except reraised:
        raise
    except Exception:
        _log.exception(event, **fields)
