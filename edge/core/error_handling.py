"""The border where the broker's and the store's errors become refusals a client can act on: one table."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import structlog

from bus import interface as bus
from edge.store import port as store
from schemas.events import RecordUnreadable
from schemas.problems import ProblemError

UNAVAILABLE_RETRY_AFTER_S = 5

# First match wins. The text None: the error's own words are meant for the client.
_PROBLEMS_BY_ERROR: Mapping[type[Exception], tuple[str, str | None]] = {
    bus.BrokerFull: ("store_full", "the broker's store is full: delete jobs or give it more space, then try again"),
    bus.BrokerUnreachable: (
        "unavailable",
        "the broker does not answer: try again, with the same key or id nothing doubles; /readyz says what is wrong",
    ),
    bus.RevisionConflict: ("unavailable", "others keep changing this at the same time: try again"),
    bus.MessageTooLarge: ("body_too_large", "the request is larger than the broker takes: move data into assets"),
    bus.BrokerDenied: ("internal", "the broker user of the edge lacks a right: check nats.conf"),
    bus.RowUnreadable: (
        "internal",
        "a stored row cannot be read: the edge's log names it; delete it or write it again",
    ),
    RecordUnreadable: ("internal", "the stored record cannot be read: a newer version may have written it"),
    store.DigestMismatch: ("digest_mismatch", None),
    store.AssetTooLarge: ("body_too_large", None),
    store.AssetStoreFull: ("store_full", None),
    store.StoreBroken: ("unavailable", None),
}


def problem_for_known_error(error: Exception) -> ProblemError | None:
    """The refusal that `error` stands for, or None when it is a bug and should stay loud."""
    for kind, (code, text) in _PROBLEMS_BY_ERROR.items():
        if isinstance(error, kind):
            retry = UNAVAILABLE_RETRY_AFTER_S if code == "unavailable" else None
            return ProblemError(code, text or str(error), retry_after_s=retry)
    return None


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise Refused for what the table knows."""
    try:
        yield
    except tuple(_PROBLEMS_BY_ERROR) as error:
        refused = problem_for_known_error(error)
        if refused is None:
            raise
        raise refused from error


# MERGED edge/services/fenced.py: A bug that one item brings out costs that item: it is told with its traceback, and
# everybody else goes on. / What is to be expected (a broker that is away, a URL that is refused) is caught by its
# name where it happens; this is / for the rest. Without it one job that we misread would end the edge, and again at
# each of its starts.


_log = structlog.get_logger()


@contextmanager
def log_and_continue(event: str, *passing: type[Exception], **about: str) -> Iterator[None]:
    """Log what the block raises, but for `passing`, as `event` with `about`, and go on behind the block."""
    try:
        yield
    except passing:
        raise
    except Exception:
        _log.exception(event, **about)
