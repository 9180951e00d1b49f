"""Counts the transitions of jobs, of every writer: waits, runs, ends and attempts.

The index delivers each revision of STATE once, after those that were stored before this process started. Each revision
is one event, so every edge counts each event of the installation once while it runs.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from bus.interface import RecordChange
from edge.core.metrics import EdgeMetrics
from edge.index.index import JobIndex
from schemas.events import Adopted, AttemptReleased, JobRecord, Started
from schemas.job import Job
from schemas.status import FINAL_STATUSES


class JobMetrics:
    """Counts in `metrics` what the index reads from STATE."""

    def __init__(self, index: JobIndex, metrics: EdgeMetrics) -> None:
        self._index = index
        self._metrics = metrics
        self._counted_revision = 0
        self._counters: Mapping[type, Callable[[Job, Any, datetime], None]] = {
            Started: self._count_start,
            Adopted: self._count_adoption,
            AttemptReleased: self._count_release,
        }
        index.subscribe_records(self._on_record_changes)

    def _on_record_changes(self, changes: Sequence[RecordChange]) -> None:
        replayed = self._index.replayed_revision
        if replayed is None:
            return  # what was stored before this process started
        for change in changes:
            if change.record is not None and change.revision > max(replayed, self._counted_revision):
                self._counted_revision = change.revision
                self._count(change.record)

    def _count(self, record: JobRecord) -> None:
        counter = self._counters.get(type(record.event))
        if counter is not None:
            counter(record.job, record.event, record.at)
        if record.job.status in FINAL_STATUSES:
            self._count_end(record.job)

    def _count_start(self, job: Job, _: Started, at: datetime) -> None:
        self._metrics.attempts_started.inc(job.endpoint)
        if job.attempt == 1 and job.queued_at is not None:
            self._metrics.job_waits.observe((at - job.queued_at).total_seconds(), job.endpoint)

    def _count_adoption(self, job: Job, _: Adopted, __: datetime) -> None:
        self._metrics.attempts_adopted.inc(job.endpoint)

    def _count_release(self, _: Job, event: AttemptReleased, __: datetime) -> None:
        self._metrics.attempts_released.inc(event.code)

    def _count_end(self, job: Job) -> None:
        self._metrics.jobs_ended.inc(job.endpoint, job.status)
        if job.error is not None:
            self._metrics.job_failures.inc(job.error.code)
        run_s = job.usage.run_s
        if run_s is not None:
            self._metrics.job_runs.observe(run_s, job.endpoint)
            gpus = len(job.claim.gpu_uuids) if job.claim else 0
            if gpus:
                self._metrics.count_gpu_seconds(job.owner, job.endpoint, gpus * run_s)
        if job.usage.gpu_energy_j is not None:
            self._metrics.gpu_energy.inc(job.endpoint, amount=max(0.0, job.usage.gpu_energy_j))
