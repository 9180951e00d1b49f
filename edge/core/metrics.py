"""The counters and histograms of one edge process. `schemas.metrics` describes each; services count in them.

What can be read at any time is in no instrument: `edge.http.routes.monitoring` reads it for each scrape.
"""

from msgspec import Struct

from bus.metric_registry import MetricRegistry
from schemas.metrics import MetricOwner


class MetricsSettings(Struct, frozen=True):
    """The `[metrics]` section of the edge."""

    owners: bool = False
    """Also count jobs, submits and GPU time by owner. It makes one series more for each owner and metric."""


class EdgeMetrics:
    """The instruments of one edge process."""

    def __init__(self, settings: MetricsSettings) -> None:
        registry = MetricRegistry(MetricOwner.EDGE)
        self.registry = registry
        self.submits = registry.counter("lamplighter_submits_total")
        self.submit_replays = registry.counter("lamplighter_submit_replays_total")
        self.submit_refusals = registry.counter("lamplighter_submit_refusals_total")
        self.job_waits = registry.histogram("lamplighter_job_wait_seconds")
        self.job_runs = registry.histogram("lamplighter_job_run_seconds")
        self.jobs_ended = registry.counter("lamplighter_jobs_ended_total")
        self.job_failures = registry.counter("lamplighter_job_failures_total")
        self.attempts_started = registry.counter("lamplighter_attempts_started_total")
        self.attempts_released = registry.counter("lamplighter_attempts_released_total")
        self.attempts_adopted = registry.counter("lamplighter_attempts_adopted_total")
        self.gpu_seconds = registry.counter("lamplighter_job_gpu_seconds_total")
        self.gpu_energy = registry.counter("lamplighter_job_gpu_energy_joules_total")
        self.requests = registry.counter("lamplighter_http_requests_total")
        self.request_durations = registry.histogram("lamplighter_http_request_duration_seconds")
        self.refusals = registry.counter("lamplighter_http_refusals_total")
        self.open_streams = registry.gauge("lamplighter_open_streams")
        self.webhook_attempts = registry.counter("lamplighter_webhook_attempts_total")
        self.webhook_durations = registry.histogram("lamplighter_webhook_attempt_duration_seconds")
        self.power_calls = registry.counter("lamplighter_host_power_calls_total")
        self.wakes = registry.counter("lamplighter_wakes_total")
        self.wake_failures = registry.counter("lamplighter_wake_failures_total")
        self.wake_durations = registry.histogram("lamplighter_wake_duration_seconds")
        self.counts_owners = settings.owners
        if settings.owners:
            self._owner_submits = registry.counter("lamplighter_owner_submits_total")
            self._owner_gpu_seconds = registry.counter("lamplighter_owner_gpu_seconds_total")

    def count_submit(self, owner: str, endpoint: str) -> None:
        """Count a submit that created a job, or a new round of one."""
        self.submits.inc(endpoint)
        if self.counts_owners:
            self._owner_submits.inc(owner)

    def count_gpu_seconds(self, owner: str, endpoint: str, seconds: float) -> None:
        """Count the GPU time of an ended round."""
        self.gpu_seconds.inc(endpoint, amount=seconds)
        if self.counts_owners:
            self._owner_gpu_seconds.inc(owner, amount=seconds)
