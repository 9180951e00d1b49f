"""A bug that one item brings out costs that item: it is told with its traceback, and everybody else goes on.

What is to be expected (a broker that is away, a URL that is refused) is caught by its name where it happens; this is
for the rest. Without it one job that we misread would end the edge, and again at each of its starts.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

_log = structlog.get_logger()


@contextmanager
def fenced(event: str, *passing: type[Exception], **about: str) -> Iterator[None]:
    """Log what the block raises, but for `passing`, as `event` with `about`, and go on behind the block."""
    try:
        yield
    except passing:
        raise
    except Exception:
        _log.exception(event, **about)
