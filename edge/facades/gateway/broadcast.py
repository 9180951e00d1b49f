"""Read the event stream of one owner once per language and key, and send it to all sockets that listen.

A stream per socket would cost one consumer of the broker each.
"""

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
WAITING_JOBS_LIMIT = 500  # waiting jobs of one status in one round of state pushes, newest first
WAITING_FRAMES_LIMIT = 5000  # state pushes of one round, over all sockets

_log = structlog.get_logger()


class PushSubscriber(Protocol):
    """A socket that receives its owner's pushes. Its methods must not block."""

    def receive_push(self, push: Push) -> None:
        """Queue a push about a change. Must not drop it."""
        ...

    def receive_push_if_slack(self, push: Push) -> None:
        """Send a push about an unchanged state, if the socket keeps up. It is repeated in ten seconds."""
        ...


class OwnerBroadcaster:
    """Reads the stream from its creation on. `last_id`: the last id that the subscribers received."""

    def __init__(self, context: CommandContext, owner: str, asker: Asker) -> None:
        self.owner = owner
        self.push_builder = PushBuilder(context, owner, asker.language)
        self.last_id = ""
        self.ready = Event()
        self.scope = CancelScope()
        self.subscribers: set[PushSubscriber] = set()
        self.session_count = 0
        self._services = context.services
        self._asker = asker
        self._cursors: dict[Status, str | None] = {}
        self._sent_revisions: dict[str, int] = {}  # by job id, in this round of state pushes
        self._older_sent_revisions: dict[str, int] = {}  # and in the round before

    async def run(self) -> None:
        """Read until `scope` is cancelled. Retries while the broker is unreachable."""
        with self.scope:
            while True:
                try:
                    await self._read()
                except BusError as error:
                    _log.warning("gateway_feed_failed", owner=self.owner, error=str(error))
                await sleep(RETRY_DELAY_S)

    async def _read(self) -> None:
        self.last_id = self.last_id or await self._services.bus.feed.last_id()
        self.ready.set()
        async with aclosing(self._services.event_streams.follow(self.owner, None, self.last_id, self._asker)) as items:
            async for item in items:
                push = await self.push_builder.build_push(item)
                if isinstance(item.data, JobView):
                    self._sent_revisions[item.data.id] = item.data.revision
                # No await between these two: a new subscriber starts exactly after `last_id`.
                self.last_id = item.id
                if push is not None:
                    for subscriber in tuple(self.subscribers):
                        subscriber.receive_push(push)

    async def send_waiting_states(self) -> None:
        """Push the state of every waiting job.

        If that needs too many frames, push some of them and continue with the others in the next round.
        Raises BusError, ProblemError.
        """
        page_size = max(1, min(WAITING_JOBS_LIMIT, WAITING_FRAMES_LIMIT // max(1, len(self.subscribers))))
        for status in WAITING_STATUSES:
            page = await self._services.index.list_jobs(
                self.owner, JobFilters(statuses=(status,)), page_size, self._cursors.get(status)
            )
            self._cursors[status] = page.next_cursor
            for entry in page.records:
                await self._send_state(entry)
        self._older_sent_revisions, self._sent_revisions = self._sent_revisions, {}

    async def _send_state(self, entry: VersionedRecord) -> None:
        await checkpoint()  # yields to other tasks: there may be hundreds of jobs and a thousand sockets
        push = await self.push_builder.build_state_push(
            self.last_id, self._services.job_views.build_without_progress(entry, self._asker)
        )
        if entry.revision >= self._last_sent_revision(entry.record.job.id):
            for subscriber in tuple(self.subscribers):
                subscriber.receive_push_if_slack(push)

    def _last_sent_revision(self, job_id: str) -> int:
        """Return the newest revision that was pushed. The index lags a little, and an older state must not follow."""
        return max(self._sent_revisions.get(job_id, 0), self._older_sent_revisions.get(job_id, 0))
