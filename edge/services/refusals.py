"""The border where the broker's and the store's errors become refusals a client can act on: one table."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from bus import port as bus
from edge.store import port as store
from schemas.errors import Refused
from schemas.events import RecordUnreadable

RETRY_AFTER_S = 5

# First match wins. The text None: the error's own words are meant for the client.
_TABLE: Mapping[type[Exception], tuple[str, str | None]] = {
    bus.StoreFull: ("store_full", "the broker's store is full: delete jobs or give it more space, then try again"),
    bus.Unreachable: (
        "unavailable",
        "the broker does not answer: try again, with the same key or id nothing doubles; /readyz says what is wrong",
    ),
    bus.Conflict: ("unavailable", "others keep changing this at the same time: try again"),
    bus.TooLarge: ("body_too_large", "the request is larger than the broker takes: move data into assets"),
    bus.Denied: ("internal", "the broker user of the edge lacks a right: check nats.conf"),
    bus.Unreadable: ("internal", "a stored row cannot be read: the edge's log names it; delete it or write it again"),
    RecordUnreadable: ("internal", "the stored record cannot be read: a newer version may have written it"),
    store.DigestMismatch: ("digest_mismatch", None),
    store.TooLarge: ("body_too_large", None),
    store.StoreFull: ("store_full", None),
    store.StoreBroken: ("unavailable", None),
}


def as_refused(error: Exception) -> Refused | None:
    """The refusal that `error` stands for, or None when it is a bug and should stay loud."""
    for kind, (code, text) in _TABLE.items():
        if isinstance(error, kind):
            retry = RETRY_AFTER_S if code == "unavailable" else None
            return Refused(code, text or str(error), retry_after_s=retry)
    return None


@contextmanager
def refusing() -> Iterator[None]:
    """Raise Refused for what the table knows."""
    try:
        yield
    except tuple(_TABLE) as error:
        refused = as_refused(error)
        if refused is None:
            raise
        raise refused from error
