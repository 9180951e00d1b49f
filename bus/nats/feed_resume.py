"""What a follower of FEED has had: ids, where to resume, and what must not be given twice. Pure; both buses use it."""

import re
from collections import OrderedDict
from typing import NamedTuple

from bus.interface import FeedItem
from schemas.feed import FeedMessage, LogMessage
from schemas.ids import JobKey

REMEMBERED_JOB_LIMIT = 10_000  # jobs of one follower; the one heard of longest ago is forgotten first

_ITEM_ID = re.compile(r"([0-9a-z]+)-([0-9]{1,19})\Z")


class FeedExtent(NamedTuple):
    """What FEED holds now: its life, and its first and last sequence (last = first - 1 when it is empty)."""

    epoch: str
    first: int
    last: int


def format_item_id(epoch: str, sequence: int) -> str:
    """The id that a client sends back to resume."""
    return f"{epoch}-{sequence}"


def resume_sequence(after: str | None, held: FeedExtent) -> int:
    """The sequence behind which to read; 0, the start, for None, another epoch, or what FEED does not hold.

    An id right before the first held sequence still joins without a gap.
    """
    match = _ITEM_ID.match(after or "")
    if match is None or match[1] != held.epoch:
        return 0
    sequence = int(match[2])
    return sequence if held.first - 1 <= sequence <= held.last else 0


class Deduplicator:
    """The newest state and the newest place of every kind of note that one follower was given, a job.

    Revisions and places only rise, so what is not above the last one was given before: after a re-opening from the
    start, a state both read from STATE and sourced, a note that an adopting runner said again outside the broker's
    deduplication window.
    """

    def __init__(self) -> None:
        self._jobs: OrderedDict[JobKey, dict[str, tuple[int, ...]]] = OrderedDict()

    def accept(self, item: FeedItem) -> bool:
        """Whether `item` is new; if so it counts as given from now on."""
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
        """The newest revision of STATE given of `key`, 0 for none."""
        return self._jobs.get(key, {}).get("state", (0,))[0]


def _item_rank(item: FeedItem) -> tuple[str, tuple[int, ...]]:
    if item.change is not None:
        return "state", (item.change.revision,)
    if item.message is None:
        raise ValueError(f"{item.id} is neither a state nor a note")
    return _message_kind(item.message), (
        item.message.position.round,
        item.message.position.attempt,
        item.message.position.offset,
    )


def _message_kind(note: FeedMessage) -> str:
    """Pieces of the two output streams interleave, each with rising offsets of its own."""
    return f"{type(note).__name__}.{note.stream}" if isinstance(note, LogMessage) else type(note).__name__
