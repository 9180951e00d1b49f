"""The view of a job for clients: its record with queue position, wait reason, message, progress and URLs."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple
from urllib.parse import quote

from msgspec import structs

from bus.interface import BusError, JobFeed, VersionedRecord
from edge.core import messages
from edge.index.index import JobIndex
from edge.jobs.forecast import EtaEstimator, WaitReasons
from edge.jobs.publish_window import PublishWindow
from edge.owners.signed_credentials import SignUrl
from schemas.job import ACTIVE_STATUSES, WAITING_STATUSES, Job, Output, Status, WaitReason
from schemas.job_view import FileView, JobUrls, JobView, OutputView, ProgressView
from schemas.texts import Language

# The fields of the record that the view has under the same name.
_COPIED_FIELDS = (
    *("id", "owner", "endpoint", "status", "input", "round", "attempt", "priority", "tags", "trace_id"),
    *("created_at", "queued_at", "started_at", "finished_at", "not_before", "deadline", "usage", "metrics"),
    "program",
)


class Asker(NamedTuple):
    """The reader of a view. `key_id`: the key whose revocation ends its URLs; None: they work until they expire."""

    language: Language = Language.EN
    key_id: str | None = None


NOBODY = Asker()


class JobViewBuilder:
    """Makes views. It asks the broker only for the progress of running jobs."""

    def __init__(  # noqa: PLR0913 - the services that it calls
        self,
        *,
        feed: JobFeed,
        index: JobIndex,
        publish_window: PublishWindow,
        wait_reasons: WaitReasons,
        eta: EtaEstimator,
        sign_url: SignUrl,
    ) -> None:
        self._feed = feed
        self._index = index
        self._publish_window = publish_window
        self._wait_reasons = wait_reasons
        self._eta = eta
        self._sign_url = sign_url

    async def build(self, entry: VersionedRecord, asker: Asker = NOBODY) -> JobView:
        """Return the view of a record. Progress that cannot be read now is left out."""
        return self._build(entry, asker, await self._read_progress(entry.record.job))

    async def build_page(self, entries: Sequence[VersionedRecord], asker: Asker = NOBODY) -> list[JobView]:
        """Return the views of a page of records, in their order."""
        return [await self.build(entry, asker) for entry in entries]

    def build_without_progress(self, entry: VersionedRecord, asker: Asker = NOBODY) -> JobView:
        """Return the view without progress, for streams, which send progress as events of its own."""
        return self._build(entry, asker, None)

    def _build(self, entry: VersionedRecord, asker: Asker, progress: ProgressView | None) -> JobView:
        job = entry.record.job
        reason = self._wait_reason(job)
        position = self._index.queue_position(job, self._publish_window.window_size(job.pool))
        return JobView(
            **{name: getattr(job, name) for name in _COPIED_FIELDS},
            revision=entry.revision,
            reason=reason,
            message=self._format_message(job, reason, position, asker.language),
            error=messages.localize_error(job.error, asker.language),
            missing=tuple(f"sha256:{digest}" for digest in job.missing),
            queue_position=position,
            eta=self._eta.estimate(job, reason, position),
            progress=progress,
            output=None
            if job.output is None
            else _output_view(job, job.output, partial(self._sign_url, key_id=asker.key_id)),
            max_attempts=job.policy.max_attempts,
            host=None if job.claim is None else job.claim.host,
            gpu=None if job.claim is None else job.claim.gpu_uuids_joined,
            engine=None if job.claim is None else job.claim.engine,
            isolation=None if job.claim is None else job.claim.isolation,
            urls=_job_urls(job.id),
        )

    def _wait_reason(self, job: Job) -> WaitReason | None:
        if job.status not in WAITING_STATUSES:
            return None
        in_window = (
            job.status is Status.SCHEDULED
            or self._publish_window.contains(job.pointer)
            or self._publish_window.has_room(job)
        )
        return self._wait_reasons.wait_reason(job, in_window=in_window)

    def _format_message(self, job: Job, reason: WaitReason | None, ahead: int | None, language: Language) -> str:
        if reason is not None:
            forecast = self._wait_reasons.wake_forecast(job.endpoint)
            wake_s, blocked = (forecast.wake_s, forecast.blocked) if forecast else (None, "")
            hosts = self._wait_reasons.offline_host_names(job.endpoint)
            pull = self._wait_reasons.download(job.endpoint, reason)
            pause = self._wait_reasons.endpoint_pause(job.endpoint)
            unmet = self._wait_reasons.unmet_requirements(job.endpoint)
            wait = messages.WaitInfo(reason, wake_s, hosts, ahead, pull, pause, unmet, blocked)
            return messages.format_wait(wait, language)
        if job.error is not None:
            return messages.format_failure(job.error, language)
        return messages.format_status(job.status, language)

    async def _read_progress(self, job: Job) -> ProgressView | None:
        if job.status not in ACTIVE_STATUSES:
            return None
        try:
            message = await self._feed.last_progress(job.key)
        except BusError:
            return None
        if message is None or (message.position.round, message.position.attempt) != (job.round, job.attempt):
            return None
        return ProgressView(message.fraction, message.stage, message.done, message.total)


def _output_view(job: Job, output: Output, sign_url: Callable[[str, str], str]) -> OutputView:
    files = tuple(
        FileView(**structs.asdict(file), url=sign_url(job.owner, f"/v1/jobs/{job.id}/files/{quote(file.name)}"))
        for file in output.files
    )
    return OutputView(files, output.data)


def _job_urls(job_id: str) -> JobUrls:
    base = f"/v1/jobs/{job_id}"
    return JobUrls(base, *(f"{base}/{verb}" for verb in ("events", "cancel", "retry", "logs")))
