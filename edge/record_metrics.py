"""Counts the transitions of jobs and the power changes of hosts from their records, whoever wrote them.

Every edge reads all records in STATE and POWER, so each edge counts each event of the installation once while it runs.
The index delivers each revision of STATE once, after those that were stored before this process started.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from bus.interface import RecordChange
from bus.metric_registry import MetricSnapshot
from edge.core.clock import HOUR_S, Clock
from edge.core.metrics import EdgeMetrics
from edge.index.index import JobIndex
from edge.power.conditions import active_override
from edge.power.controller import PowerController
from schemas.events import Adopted, AttemptReleased, JobRecord, Started
from schemas.host_config import AnyHostConfig
from schemas.job import FINAL_STATUSES, Job
from schemas.power import PowerRecord, PowerState


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


_FAILED_WAKE_STATES = frozenset({PowerState.STOPPING, PowerState.FAULT})


class PowerMetrics:
    """Counts in `metrics`, from now on. `rules`: the settings of the declared hosts."""

    def __init__(
        self, power: PowerController, rules: Mapping[str, AnyHostConfig], metrics: EdgeMetrics, now: Clock
    ) -> None:
        self._power = power
        self._rules = rules
        self._metrics = metrics
        self._now = now
        self._counted_until = now()
        self._on_seconds: dict[str, float] = {}
        power.subscribe_records(self._on_record_change)

    def read(self, snapshot: MetricSnapshot) -> None:
        """Add the power of the declared hosts to the values of a scrape."""
        at = self._now()
        for host, record in self._power.records().items():
            for state in PowerState:
                snapshot.set("lamplighter_host_power_state", record.state is state, host, state)
            override = active_override(record, at)
            for want in ("on", "off"):
                is_held = override is not None and override.want == want
                snapshot.set("lamplighter_host_override", is_held, host, want)
            rules = self._rules[host]
            snapshot.set("lamplighter_host_idle_limit_seconds", max(rules.idle_after, rules.min_on), host)
        for host, seconds in self.on_seconds().items():
            snapshot.set("lamplighter_host_on_seconds_total", seconds, host)
            price = self._rules[host].price
            if price is not None:
                cost = seconds / HOUR_S * price.hourly_cost
                snapshot.set("lamplighter_host_cost_total", cost, host, price.currency)

    def on_seconds(self) -> Mapping[str, float]:
        """Return for how many seconds each declared host was on since this process started."""
        at = max(self._now(), self._counted_until)  # the clock may have been set back
        for host, record in self._power.records().items():
            counted = self._on_seconds.get(host, 0.0)
            self._on_seconds[host] = counted + seconds_on(record, self._counted_until, at)
        self._counted_until = at
        return self._on_seconds

    def _on_record_change(self, host: str, before: PowerRecord, after: PowerRecord) -> None:
        if before.state is not after.state and after.state is PowerState.WAKING:
            self._metrics.wakes.inc(host)
        if before.state is PowerState.WAKING and after.state in _FAILED_WAKE_STATES:
            self._metrics.wake_failures.inc(host)
        if after.state is PowerState.ONLINE and after.wake_durations_s != before.wake_durations_s:
            self._metrics.wake_durations.observe(after.wake_durations_s[-1], host)
        call = after.call
        is_counted = before.call is not None and call is not None and before.call.id == call.id and before.call.result
        if call is not None and call.result is not None and not is_counted:
            self._metrics.power_calls.inc(host, call.verb, call.result.outcome)


def seconds_on(record: PowerRecord, since: datetime, until: datetime) -> float:
    """Return for how many seconds between the two times the host had power."""
    intervals = [(one.since, one.until) for one in record.on_intervals]
    if record.on_since is not None:
        intervals.append((record.on_since, until))
    overlaps = (min(end, until) - max(start, since) for start, end in intervals)
    return sum((overlap for overlap in overlaps if overlap > timedelta()), timedelta()).total_seconds()
