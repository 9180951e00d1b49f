"""Every metric of Prometheus: name, type, unit, labels with their values, and which process answers it.

`bus.metric_registry` makes instruments of this table, docs/metrics.md is printed from it, and so are the dashboards and
alert rules. A name that is used anywhere and does not stand here is an error.

No label has the id of a job. A label whose values are not known beforehand has at most `SERIES_LIMIT` of them, and
everything beyond is counted as `other`.
"""

from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from typing import NamedTuple

from msgspec import Struct

from schemas.gpu import GpuHealthStatus
from schemas.job import FINAL_STATUSES, Status
from schemas.lifecycle import FAILURES
from schemas.power import PowerCallOutcome, PowerState, PowerVerb
from schemas.problems import PROBLEM_TYPES

OTHER = "other"  # the label value of everything that has none of its own
SERIES_LIMIT = 500  # values of one label of one metric, such as endpoints


class MetricType(StrEnum):
    """The types of Prometheus. A gauge whose name ends in `_info` is always 1; its labels are the information."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class MetricOwner(StrEnum):
    """The process that answers the metric at its `/metrics`."""

    EDGE = "edge"
    RUNNER = "runner"


class MetricScope(StrEnum):
    """The view that one process has of a metric, which decides how to combine several processes.

    PROCESS: about this process. Add the counters and histograms of several. INSTALLATION: every edge answers the same,
    from the broker; take one of them or the largest. A counter of this scope counts what the edge saw since it started.
    """

    PROCESS = "process"
    INSTALLATION = "installation"


class Label(NamedTuple):
    """A label. `values`: all that it can have; empty where `bound` says what bounds them."""

    name: str
    values: tuple[str, ...] = ()
    bound: str = ""


class Metric(Struct, frozen=True, kw_only=True):
    """One metric.

    `name` is the name in a query; a histogram adds `_bucket`, `_sum` and `_count` to it. `unit`: empty for a count.
    `help` is one line and says when the metric is absent. `for_all_keys`: a key without the scope `power` sees it too.
    """

    name: str
    type: MetricType
    owner: MetricOwner
    scope: MetricScope
    help: str
    unit: str = ""
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()
    for_all_keys: bool = False


ENDPOINT = Label("endpoint", bound="declared endpoints")
HOST = Label("host", bound="hosts")
OWNER = Label("owner", bound="owners")
GPU = Label("gpu", bound="GPUs of the host, by UUID")
CODE = Label("code", (*FAILURES, OTHER))
REFUSAL = Label("code", (*PROBLEM_TYPES, OTHER))
FITNESS = Label("fitness", (*GpuHealthStatus, OTHER))
ROUTE = Label("route", bound="routes of the API, and `other` for every other path")

_HOST_STATES = tuple(dict.fromkeys(("online", "draining", *PowerState)))  # as in `HostView.state`

REQUEST_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
JOB_BUCKETS_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0, 86400.0)
WAKE_BUCKETS_S = (5.0, 10.0, 20.0, 30.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0, 1200.0)

_COUNTER, _GAUGE, _HISTOGRAM = MetricType.COUNTER, MetricType.GAUGE, MetricType.HISTOGRAM


def _installation(  # noqa: PLR0913 - the columns of the table
    kind: MetricType,
    name: str,
    help_: str,
    *labels: Label,
    unit: str = "",
    buckets: tuple[float, ...] = (),
    for_all_keys: bool = False,
) -> Metric:
    return Metric(
        name=name,
        type=kind,
        owner=MetricOwner.EDGE,
        scope=MetricScope.INSTALLATION,
        help=help_,
        unit=unit,
        labels=labels,
        buckets=buckets,
        for_all_keys=for_all_keys,
    )


def _process(  # noqa: PLR0913 - the columns of the table
    owner: MetricOwner,
    kind: MetricType,
    name: str,
    help_: str,
    *labels: Label,
    unit: str = "",
    buckets: tuple[float, ...] = (),
) -> Metric:
    return Metric(
        name=name,
        type=kind,
        owner=owner,
        scope=MetricScope.PROCESS,
        help=help_,
        unit=unit,
        labels=labels,
        buckets=buckets,
    )


_edge, _runner = partial(_process, MetricOwner.EDGE), partial(_process, MetricOwner.RUNNER)

_JOBS = (
    _installation(
        _GAUGE,
        "lamplighter_jobs",
        "Jobs that are recorded, ended ones too; those that wait have the status queued",
        ENDPOINT,
        Label("status", tuple(Status)),
        for_all_keys=True,
    ),
    _installation(
        _GAUGE,
        "lamplighter_queue_oldest_wait_seconds",
        "Time for which the oldest queued job has waited, 0 while no job is queued",
        ENDPOINT,
        unit="seconds",
    ),
    _edge(_COUNTER, "lamplighter_submits_total", "Submits that created a job, or a new round of one", ENDPOINT),
    _edge(_COUNTER, "lamplighter_submit_replays_total", "Submits that were answered with an existing job", ENDPOINT),
    _edge(_COUNTER, "lamplighter_submit_refusals_total", "Submits that were refused, by code of the refusal", REFUSAL),
    _installation(
        _HISTOGRAM,
        "lamplighter_job_wait_seconds",
        "Time from queued to the first start of a round",
        ENDPOINT,
        unit="seconds",
        buckets=JOB_BUCKETS_S,
    ),
    _installation(
        _HISTOGRAM,
        "lamplighter_job_run_seconds",
        "Time for which the last attempt of an ended round ran",
        ENDPOINT,
        unit="seconds",
        buckets=JOB_BUCKETS_S,
    ),
    _installation(
        _COUNTER,
        "lamplighter_jobs_ended_total",
        "Ended rounds of jobs, by final status",
        ENDPOINT,
        Label("status", tuple(status for status in Status if status in FINAL_STATUSES)),
    ),
    _installation(
        _COUNTER,
        "lamplighter_job_failures_total",
        "Failed rounds of jobs, by failure code; codes that an image defines are `other`",
        CODE,
    ),
    _installation(_COUNTER, "lamplighter_attempts_started_total", "Attempts that a runner has claimed", ENDPOINT),
    _installation(
        _COUNTER,
        "lamplighter_attempts_released_total",
        "Attempts after which the job waits again, by failure code",
        CODE,
    ),
    _installation(
        _COUNTER, "lamplighter_attempts_adopted_total", "Attempts that a new runner process took over", ENDPOINT
    ),
    _installation(_COUNTER, "lamplighter_job_gpu_seconds_total", "GPU time of ended rounds", ENDPOINT, unit="seconds"),
    _installation(
        _COUNTER,
        "lamplighter_job_gpu_energy_joules_total",
        "Energy that GPUs used for ended rounds, as far as it was measured",
        ENDPOINT,
        unit="joules",
    ),
)

# Answered only with `[metrics] owners = true`.
_OWNERS = (
    _installation(
        _GAUGE,
        "lamplighter_owner_jobs",
        "Jobs that are recorded, by owner; absent without metrics.owners",
        OWNER,
        Label("status", tuple(Status)),
    ),
    _edge(
        _COUNTER, "lamplighter_owner_submits_total", "Submits that created a job; absent without metrics.owners", OWNER
    ),
    _installation(
        _COUNTER,
        "lamplighter_owner_gpu_seconds_total",
        "GPU time of ended rounds, by owner; absent without metrics.owners",
        OWNER,
        unit="seconds",
    ),
)

_HTTP = (
    _edge(
        _COUNTER,
        "lamplighter_http_requests_total",
        "Requests that were answered, by class of the status",
        Label("method", ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", OTHER)),
        ROUTE,
        Label("status", ("2xx", "3xx", "4xx", "5xx", OTHER)),
    ),
    _edge(
        _HISTOGRAM,
        "lamplighter_http_request_duration_seconds",
        "Time from the head of a request to the head of its answer",
        ROUTE,
        unit="seconds",
        buckets=REQUEST_BUCKETS_S,
    ),
    _edge(_COUNTER, "lamplighter_http_refusals_total", "Requests that were refused, by code of the refusal", REFUSAL),
    _edge(_GAUGE, "lamplighter_open_streams", "Open event streams and WebSockets", Label("kind", ("sse", "websocket"))),
)

_WEBHOOKS = (
    _edge(
        _COUNTER,
        "lamplighter_webhook_attempts_total",
        "Attempts to deliver a webhook, by the state of the delivery after them",
        Label("outcome", ("delivered", "pending", "failed", "disabled")),
    ),
    _edge(
        _HISTOGRAM,
        "lamplighter_webhook_attempt_duration_seconds",
        "Time of one attempt to deliver a webhook",
        unit="seconds",
        buckets=REQUEST_BUCKETS_S,
    ),
    _installation(_GAUGE, "lamplighter_webhook_outbox_deliveries", "Webhook deliveries that wait in the broker"),
    _installation(
        _GAUGE,
        "lamplighter_webhook_outbox_oldest_age_seconds",
        "Age of the oldest webhook delivery in the broker, 0 without deliveries",
        unit="seconds",
    ),
)

_HOSTS = (
    _installation(
        _GAUGE, "lamplighter_hosts", "Hosts, by state", Label("state", (*_HOST_STATES, OTHER)), for_all_keys=True
    ),
    _installation(_GAUGE, "lamplighter_host_up", "Whether the host's runner sends heartbeats", HOST),
    _installation(
        _GAUGE,
        "lamplighter_host_heartbeat_age_seconds",
        "Age of the host's last heartbeat, by the clocks of both; negative if the host's clock is ahead",
        HOST,
        unit="seconds",
    ),
    _installation(_GAUGE, "lamplighter_host_gpus", "GPUs of a host that is up, by health", HOST, FITNESS),
    _installation(_GAUGE, "lamplighter_host_running_jobs", "Jobs that run on a host that is up", HOST),
    _installation(
        _GAUGE,
        "lamplighter_host_busy",
        "Whether a host that is up runs jobs, has outputs to upload, or is used by others",
        HOST,
    ),
    _installation(
        _GAUGE,
        "lamplighter_host_idle_limit_seconds",
        "Time without work after which a host with a power driver is powered off",
        HOST,
        unit="seconds",
    ),
    _installation(
        _GAUGE,
        "lamplighter_host_override",
        "Whether a power override keeps the host on or off",
        HOST,
        Label("want", ("on", "off")),
    ),
    _installation(
        _GAUGE,
        "lamplighter_host_power_state",
        "1 for the power state of a host with a power driver, 0 for the other states",
        HOST,
        Label("state", tuple(PowerState)),
    ),
    _installation(
        _COUNTER,
        "lamplighter_host_power_calls_total",
        "Calls to power drivers that have ended",
        HOST,
        Label("verb", tuple(PowerVerb)),
        Label("outcome", tuple(PowerCallOutcome)),
    ),
    _installation(_COUNTER, "lamplighter_wakes_total", "Times that the edge began to power a host on", HOST),
    _installation(
        _COUNTER,
        "lamplighter_wake_failures_total",
        "Times that a host did not come up: it was powered off and on again, or is in fault",
        HOST,
    ),
    _installation(
        _HISTOGRAM,
        "lamplighter_wake_duration_seconds",
        "Time from the start call to the first heartbeat",
        HOST,
        unit="seconds",
        buckets=WAKE_BUCKETS_S,
    ),
    _installation(
        _COUNTER,
        "lamplighter_host_on_seconds_total",
        "Time for which a host with a power driver was on",
        HOST,
        unit="seconds",
    ),
    _installation(
        _COUNTER,
        "lamplighter_host_cost_total",
        "Cost of the time for which a host was on, in its currency; absent for a host without a price",
        HOST,
        Label("currency", bound="currencies of declared hosts"),
    ),
)

_BROKER = (
    _edge(_GAUGE, "lamplighter_broker_connected", "Whether this edge is connected to the broker"),
    _installation(
        _GAUGE, "lamplighter_broker_durable", "Whether the broker syncs every write; absent while that is unknown"
    ),
    _installation(
        _GAUGE,
        "lamplighter_broker_store_used_ratio",
        "Share of the broker's store in use",
        unit="ratio",
        for_all_keys=True,
    ),
    _installation(_GAUGE, "lamplighter_broker_store_used_bytes", "Bytes in the broker's store", unit="bytes"),
    _installation(
        _GAUGE,
        "lamplighter_broker_store_limit_bytes",
        "Size of the broker's store; absent if it has no limit",
        unit="bytes",
    ),
    _installation(
        _GAUGE,
        "lamplighter_broker_pending_messages",
        "Broker messages that wait: pointers of jobs, states not yet checked for webhooks, webhook deliveries",
        Label("consumer", ("jobs", "webhook_states", "webhook_deliveries")),
    ),
)

_EDGE = (
    _edge(
        _GAUGE,
        "lamplighter_edge_info",
        "Always 1; the label is the release of the edge",
        Label("version", bound="one value"),
    ),
    _edge(_GAUGE, "lamplighter_edge_ready", "Whether this edge accepts new jobs, as /readyz says"),
    _edge(
        _GAUGE,
        "lamplighter_edge_clock_offset_seconds",
        "Time of this edge's clock minus time of the broker's; absent while the broker does not answer",
        unit="seconds",
    ),
    _edge(_GAUGE, "lamplighter_edge_disk_free_bytes", "Free bytes on the disk of the data folder", unit="bytes"),
    _edge(_GAUGE, "lamplighter_edge_disk_size_bytes", "Size of the disk of the data folder", unit="bytes"),
    _edge(
        _GAUGE,
        "lamplighter_certificate_expiry_timestamp_seconds",
        "End of the validity of a certificate that the edge knows, as Unix time",
        Label("server", ("edge", "broker")),
        unit="seconds",
    ),
    _edge(
        _GAUGE,
        "lamplighter_backup_last_success_timestamp_seconds",
        "End of the last successful backup of the data folder, as Unix time; absent before the first",
        unit="seconds",
    ),
)

_RUNNER = (
    _runner(
        _GAUGE,
        "lamplighter_runner_info",
        "Always 1; the labels describe the runner",
        Label("host", bound="one value"),
        Label("engine", bound="one value"),
        Label("version", bound="one value"),
    ),
    _runner(_GAUGE, "lamplighter_runner_slots", "Jobs that may run at the same time"),
    _runner(_GAUGE, "lamplighter_runner_jobs", "Jobs that run, by endpoint", ENDPOINT),
    _runner(_GAUGE, "lamplighter_runner_draining", "Whether the runner takes no new jobs"),
    _runner(_COUNTER, "lamplighter_runner_attempts_total", "Attempts that were started or adopted", ENDPOINT),
    _runner(
        _HISTOGRAM,
        "lamplighter_runner_engine_start_duration_seconds",
        "Time that the engine took to start a container",
        unit="seconds",
        buckets=REQUEST_BUCKETS_S,
    ),
    _runner(_COUNTER, "lamplighter_runner_cache_hits_total", "Input files that were in the cache"),
    _runner(_COUNTER, "lamplighter_runner_cache_misses_total", "Input files that were fetched from the edge"),
    _runner(_GAUGE, "lamplighter_runner_cache_bytes", "Bytes of input files in the cache", unit="bytes"),
    _runner(_COUNTER, "lamplighter_runner_warm_hits_total", "Jobs that got a warm container", ENDPOINT),
    _runner(
        _COUNTER,
        "lamplighter_runner_warm_misses_total",
        "Jobs that got no warm container, although their endpoint has them",
        ENDPOINT,
    ),
    _runner(
        _GAUGE,
        "lamplighter_runner_warm_containers",
        "Warm containers that wait for a job",
        ENDPOINT,
        Label("state", ("ready", "loading")),
    ),
    _runner(_GAUGE, "lamplighter_runner_disk_free_bytes", "Free bytes on the disk of the data folder", unit="bytes"),
    _runner(_GAUGE, "lamplighter_runner_disk_size_bytes", "Size of the disk of the data folder", unit="bytes"),
    _runner(
        _GAUGE,
        "lamplighter_gpu_info",
        "Always 1; the label is the name of the GPU",
        GPU,
        Label("name", bound="one value"),
    ),
    _runner(
        _GAUGE, "lamplighter_gpu_fitness", "1 for the current health of a GPU, 0 for the other values", GPU, FITNESS
    ),
    _runner(
        _GAUGE, "lamplighter_gpu_temperature_celsius", "Temperature of a GPU, if it reports it", GPU, unit="celsius"
    ),
    _runner(_GAUGE, "lamplighter_gpu_power_watts", "Power that a GPU draws, if it reports it", GPU, unit="watts"),
    _runner(
        _GAUGE,
        "lamplighter_gpu_utilization_ratio",
        "Share of the time in which a kernel ran, if reported",
        GPU,
        unit="ratio",
    ),
    _runner(_GAUGE, "lamplighter_gpu_memory_used_bytes", "Memory of a GPU in use, if reported", GPU, unit="bytes"),
    _runner(_GAUGE, "lamplighter_gpu_memory_size_bytes", "Memory of a GPU, if reported", GPU, unit="bytes"),
)

METRICS = (*_JOBS, *_OWNERS, *_HTTP, *_WEBHOOKS, *_HOSTS, *_BROKER, *_EDGE, *_RUNNER)
METRIC_BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}
