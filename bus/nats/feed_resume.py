"""Ids of FEED items, where a follower resumes, and which items it has already received.

Pure; the fake broker uses it too.
"""

import re
from collections import OrderedDict
from typing import NamedTuple

from bus.interface import FeedItem
from schemas.feed import FeedMessage, LogMessage
from schemas.ids import JobKey

REMEMBERED_JOB_LIMIT = 10_000  # jobs of one follower; the one without an item for longest is forgotten first

_ITEM_ID = re.compile(r"([0-9a-z]+)-([0-9]{1,19})\Z")


class FeedExtent(NamedTuple):
    """The range of FEED: its epoch, and its first and last sequence (last = first - 1 when it is empty)."""

    epoch: str
    first: int
    last: int


def format_item_id(epoch: str, sequence: int) -> str:
    """Return the id that a client sends back to resume."""
    return f"{epoch}-{sequence}"


def resume_sequence(after: str | None, extent: FeedExtent) -> int:
    """Return the sequence after which to read; 0, the start, for None, another epoch, or an id outside of FEED.

    An id right before the first sequence still resumes without a gap.
    """
    match = _ITEM_ID.match(after or "")
    if match is None or match[1] != extent.epoch:
        return 0
    sequence = int(match[2])
    return sequence if extent.first - 1 <= sequence <= extent.last else 0


class Deduplicator:
    """Remember, for each job of one follower, the newest state and the newest position of each kind of message.

    Revisions and positions only rise, so whatever is not above the last one was received before. Repeats come from a
    read that starts again, from a state that was both read and sourced, and from a runner that repeats a message after
    the broker's deduplication window.
    """

    def __init__(self) -> None:
        self._jobs: OrderedDict[JobKey, dict[str, tuple[int, ...]]] = OrderedDict()

    def accept(self, item: FeedItem) -> bool:
        """Return whether `item` is new, and remember it."""
        seen = self._jobs.setdefault(item.key, {})
        self._jobs.move_to_end(item.key)
        if len(self._jobs) > REMEMBERED_JOB_LIMIT:
            self._jobs.popitem(last=False)
        kind, rank = _item_rank(item)
        if rank <= seen.get(kind, ()):
            return False
        seen[kind] = rank
        return True

    def last_revision(self, key: JobKey) -> int:
        """Return the newest revision of STATE received for `key`, 0 for none."""
        return self._jobs.get(key, {}).get("state", (0,))[0]


def _item_rank(item: FeedItem) -> tuple[str, tuple[int, ...]]:
    if item.change is not None:
        return "state", (item.change.revision,)
    if item.message is None:
        raise ValueError(f"{item.id} is neither a state nor a message")
    return _message_kind(item.message), (
        item.message.position.round,
        item.message.position.attempt,
        item.message.position.offset,
    )


def _message_kind(message: FeedMessage) -> str:
    """The two output streams interleave, each with rising offsets of its own."""
    return f"{type(message).__name__}.{message.stream}" if isinstance(message, LogMessage) else type(message).__name__
