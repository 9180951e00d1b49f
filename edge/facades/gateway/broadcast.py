"""One stream an owner, language and key at this edge, however many sockets listen: each would cost a consumer."""

from contextlib import aclosing
from typing import Protocol

import structlog
from anyio import CancelScope, Event, sleep
from anyio.lowlevel import checkpoint

from bus.interface import BusError, VersionedRecord
from edge.facades.gateway.context import CommandContext
from edge.facades.gateway.envelopes import Push, PushBuilder
from edge.index.paging import JobFilters
from edge.jobs.view import Asker
from schemas.job_view import JobView
from schemas.status import WAITING_STATUSES, Status

RETRY_DELAY_S = 1.0
WAITING_JOBS_LIMIT = 500  # waiting jobs of a status that are told of at once, newest first
WAITING_FRAMES_LIMIT = 5000  # and to how many sockets in all

_log = structlog.get_logger()


class PushSubscriber(Protocol):
    """A socket that wants its owner's pushes. Neither may block."""

    def receive_push(self, push: Push) -> None:
        """Something happened."""
        ...

    def receive_push_if_slack(self, push: Push) -> None:
        """Something is as it was; it is said again in ten seconds."""
        ...


class OwnerBroadcaster:
    """Reads the stream from when it is first asked for. `last`: the id behind which its listeners are."""

    def __init__(self, hall: CommandContext, owner: str, asker: Asker) -> None:
        self.owner = owner
        self.push_builder = PushBuilder(hall, owner, asker.language)
        self.last_id = ""
        self.ready = Event()
        self.scope = CancelScope()
        self.subscribers: set[PushSubscriber] = set()
        self.session_count = 0
        self._services = hall.services
        self._asker = asker
        self._cursors: dict[Status, str | None] = {}
        self._sent_revisions: dict[str, int] = {}  # job id to the revision last told, of this round of waiting lines
        self._older_sent_revisions: dict[str, int] = {}  # and of the one before

    async def run(self) -> None:
        """Until its scope is cancelled; a broker that is away is asked again."""
        with self.scope:
            while True:
                try:
                    await self._read()
                except BusError as error:
                    _log.warning("gateway_feed_not_read", owner=self.owner, error=str(error))
                await sleep(RETRY_DELAY_S)

    async def _read(self) -> None:
        self.last_id = self.last_id or await self._services.bus.feed.last_id()
        self.ready.set()
        async with aclosing(self._services.event_streams.follow(self.owner, None, self.last_id, self._asker)) as items:
            async for item in items:
                push = await self.push_builder.build_push(item)
                if isinstance(item.data, JobView):
                    self._sent_revisions[item.data.id] = item.data.revision
                # No wait between these two: whoever joins is behind `last` exactly.
                self.last_id = item.id
                if push is not None:
                    for listener in tuple(self.subscribers):
                        listener.receive_push(push)

    async def send_waiting_states(self) -> None:
        """Say of every waiting job that it still waits; of some, and next time of others, where that would be too many
        frames. Raises BusError, Refused.
        """
        at_most = max(1, min(WAITING_JOBS_LIMIT, WAITING_FRAMES_LIMIT // max(1, len(self.subscribers))))
        for status in WAITING_STATUSES:
            page = await self._services.index.list_jobs(
                self.owner, JobFilters(status=status), at_most, self._cursors.get(status)
            )
            self._cursors[status] = page.next_cursor
            for entry in page.records:
                await self._send_state(entry)
        self._older_sent_revisions, self._sent_revisions = self._sent_revisions, {}

    async def _send_state(self, entry: VersionedRecord) -> None:
        await checkpoint()  # a line to a thousand sockets takes its time, and there may be hundreds of lines
        push = await self.push_builder.build_state_push(
            self.last_id, self._services.job_views.build_without_progress(entry, self._asker)
        )
        if entry.revision >= self._last_sent_revision(entry.record.job.id):
            for listener in tuple(self.subscribers):
                listener.receive_push_if_slack(push)

    def _last_sent_revision(self, job_id: str) -> int:
        """The newest revision told lately: the index is a little behind, and must not take a word back."""
        return max(self._sent_revisions.get(job_id, 0), self._older_sent_revisions.get(job_id, 0))
