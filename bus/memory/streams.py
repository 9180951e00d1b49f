"""STATE and FEED together: what is written to the one appears in the other, as the broker's sourcing does it."""

from typing import NamedTuple

from bus import subjects
from bus.memory.log import Log


class Streams(NamedTuple):
    """`epoch` names this life of FEED."""

    state: Log
    feed: Log
    epoch: str

    def write(self, subject: str, data: bytes, expect: int | None = None) -> int:
        """Any bytes to a record's subject, as any program could; the new revision."""
        revision = self.state.append(subject, data, expect=expect)
        if revision is None:
            raise AssertionError("only a message with an id can be a duplicate")
        key = subjects.record_key(subject)
        self.feed.append(f"feed.{key.owner}.{key.id}.state", data, source=revision)
        return revision
