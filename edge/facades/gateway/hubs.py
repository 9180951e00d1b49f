"""One stream an owner, language and key at this edge, however many sockets listen: each would cost a consumer."""

from contextlib import aclosing
from typing import Protocol

import structlog
from anyio import CancelScope, Event, sleep
from anyio.lowlevel import checkpoint

from bus.port import BusError, Entry
from edge.facades.gateway.hall import Hall
from edge.facades.gateway.pushes import Push, Pushes
from edge.services.pages import Filters
from edge.services.view import Asker
from schemas.view import JobView
from schemas.words import WAITING, Status

AGAIN_S = 1.0
LINES = 500  # waiting jobs of a status that are told of at once, newest first
FRAMES = 5000  # and to how many sockets in all

_log = structlog.get_logger()


class Listener(Protocol):
    """A socket that wants its owner's pushes. Neither may block."""

    def hear(self, push: Push) -> None:
        """Something happened."""
        ...

    def hear_if_relaxed(self, push: Push) -> None:
        """Something is as it was; it is said again in ten seconds."""
        ...


class Hub:
    """Reads the stream from when it is first asked for. `last`: the id behind which its listeners are."""

    def __init__(self, hall: Hall, owner: str, asker: Asker) -> None:
        self.owner = owner
        self.pushes = Pushes(hall, owner, asker.language)
        self.last = ""
        self.ready = Event()
        self.scope = CancelScope()
        self.listeners: set[Listener] = set()
        self.users = 0
        self._parts = hall.parts
        self._asker = asker
        self._cursors: dict[Status, str | None] = {}
        self._newest: dict[str, int] = {}  # job id to the revision last told, of this round of waiting lines
        self._older: dict[str, int] = {}  # and of the one before

    async def run(self) -> None:
        """Until its scope is cancelled; a broker that is away is asked again."""
        with self.scope:
            while True:
                try:
                    await self._read()
                except BusError as error:
                    _log.warning("gateway_feed_not_read", owner=self.owner, error=str(error))
                await sleep(AGAIN_S)

    async def _read(self) -> None:
        self.last = self.last or await self._parts.bus.feed.position()
        self.ready.set()
        async with aclosing(self._parts.follower.events(self.owner, None, self.last, self._asker)) as items:
            async for item in items:
                push = await self.pushes.push(item)
                if isinstance(item.data, JobView):
                    self._newest[item.data.id] = item.data.revision
                # No wait between these two: whoever joins is behind `last` exactly.
                self.last = item.id
                if push is not None:
                    for listener in tuple(self.listeners):
                        listener.hear(push)

    async def tell_waiting(self) -> None:
        """Say of every waiting job that it still waits; of some, and next time of others, where that would be too many
        frames. Raises BusError, Refused.
        """
        at_most = max(1, min(LINES, FRAMES // max(1, len(self.listeners))))
        for status in WAITING:
            page = await self._parts.index.list(self.owner, Filters(status=status), at_most, self._cursors.get(status))
            self._cursors[status] = page.next_cursor
            for entry in page.entries:
                await self._tell(entry)
        self._older, self._newest = self._newest, {}

    async def _tell(self, entry: Entry) -> None:
        await checkpoint()  # a line to a thousand sockets takes its time, and there may be hundreds of lines
        push = await self.pushes.state(self.last, self._parts.viewer.state(entry, self._asker))
        if entry.revision >= self._told(entry.recorded.job.id):
            for listener in tuple(self.listeners):
                listener.hear_if_relaxed(push)

    def _told(self, job_id: str) -> int:
        """The newest revision told lately: the index is a little behind, and must not take a word back."""
        return max(self._newest.get(job_id, 0), self._older.get(job_id, 0))
