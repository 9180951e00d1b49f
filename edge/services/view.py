"""A record as a client sees it: position, reason, message, progress and links added (PROTOCOLS 1, "Job")."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple
from urllib.parse import quote

from msgspec import structs

from bus.port import BusError, Entry, Feed
from edge.services import messages
from edge.services.hosts import HostWatch
from edge.services.index import Index
from edge.services.messages import Language
from edge.services.signing import Link
from edge.services.window import Window
from schemas.job import Job, Output
from schemas.reasons import Reason
from schemas.view import Eta, FileView, JobUrls, JobView, OutputView, ProgressView
from schemas.words import ACTIVE, WAITING, Status

# Fields of the record that the view shows under the same name.
_SAME = (
    *("id", "owner", "endpoint", "status", "input", "error", "round", "attempt", "priority", "tags", "trace_id"),
    *("created_at", "queued_at", "started_at", "finished_at", "not_before", "deadline", "usage"),
)

# When a job should start and end, by why it waits and how many are ahead of it.
Foretell = Callable[[Job, Reason | None, int | None], Eta | None]


def _untold(_job: Job, _reason: Reason | None, _ahead: int | None) -> None:
    """Nobody can tell."""


class Asker(NamedTuple):
    """Whom a view is made for. `key_id`: the key that links in it work for; None: they work until their time."""

    language: Language = Language.EN
    key_id: str | None = None


NOBODY = Asker()


class Viewer:
    """Makes views. The only thing it asks the broker for is the progress of a running job."""

    def __init__(self, feed: Feed, index: Index, window: Window, hosts: HostWatch, link: Link) -> None:
        self._feed = feed
        self._index = index
        self._window = window
        self._hosts = hosts
        self._link = link
        self._eta: Foretell = _untold

    def foretell_by(self, eta: Foretell) -> None:
        """From now on `eta` says when a job should start and end."""
        self._eta = eta

    async def job(self, entry: Entry, asker: Asker = NOBODY) -> JobView:
        """The job of `entry`. A progress that cannot be read now is left out."""
        return self._view(entry, asker, await self._progress(entry.recorded.job))

    async def jobs(self, entries: Sequence[Entry], asker: Asker = NOBODY) -> list[JobView]:
        """A page of them, in their order."""
        return [await self.job(entry, asker) for entry in entries]

    def state(self, entry: Entry, asker: Asker = NOBODY) -> JobView:
        """The job without its progress, which a follower gets in messages of its own."""
        return self._view(entry, asker, None)

    def _view(self, entry: Entry, asker: Asker, progress: ProgressView | None) -> JobView:
        job = entry.recorded.job
        reason = self._reason(job)
        position = self._index.position(job, self._window.span(job.pool))
        return JobView(
            **{name: getattr(job, name) for name in _SAME},
            revision=entry.revision,
            reason=reason,
            message=self._message(job, reason, position, asker.language),
            missing=tuple(f"sha256:{digest}" for digest in job.missing),
            queue_position=position,
            eta=self._eta(job, reason, position),
            progress=progress,
            output=None if job.output is None else _output(job, job.output, partial(self._link, key_id=asker.key_id)),
            max_attempts=job.policy.max_attempts,
            host=None if job.claim is None else job.claim.host,
            gpu=None if job.claim is None else job.claim.gpu,
            engine=None if job.claim is None else job.claim.engine,
            urls=_urls(job.id),
        )

    def _reason(self, job: Job) -> Reason | None:
        if job.status not in WAITING:
            return None
        in_window = job.status is Status.SCHEDULED or self._window.holds(job.pointer) or self._window.has_room(job)
        return self._hosts.waiting_reason(job, in_window=in_window)

    def _message(self, job: Job, reason: Reason | None, ahead: int | None, language: Language) -> str:
        if reason is not None:
            hosts, endpoint = self._hosts, job.endpoint
            wait = messages.Wait(reason, hosts.wake_s(endpoint), hosts.absent(endpoint), ahead)
            return messages.waiting(wait, language)
        if job.error is not None:
            return messages.failure(job.error, language)
        return messages.status(job.status, language)

    async def _progress(self, job: Job) -> ProgressView | None:
        if job.status not in ACTIVE:
            return None
        try:
            note = await self._feed.last_progress(job.key)
        except BusError:
            return None
        if note is None or (note.place.round, note.place.attempt) != (job.round, job.attempt):
            return None
        return ProgressView(note.fraction, note.stage, note.done, note.total)


def _output(job: Job, output: Output, link: Callable[[str, str], str]) -> OutputView:
    files = tuple(
        FileView(**structs.asdict(file), url=link(job.owner, f"/v1/jobs/{job.id}/files/{quote(file.name)}"))
        for file in output.files
    )
    return OutputView(files, output.data)


def _urls(job_id: str) -> JobUrls:
    base = f"/v1/jobs/{job_id}"
    return JobUrls(base, *(f"{base}/{verb}" for verb in ("events", "cancel", "retry", "logs")))
