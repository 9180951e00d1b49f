"""Forecast of a job: why it waits and for which hosts, and when it will start and end.

The reason follows from the job, its hosts and the power controller. The times follow from the last runs of its
endpoint on this kind of GPU, the wake and the queue. What follows from run times is pure. If the endpoint names the
input field that has its duration, runs are compared by seconds per second of input, else by their total time.

`RunHistory` collects the runs from the records that pass on their way to the index. So a view needs no query, and a
forecast costs the same whether one job waits or a hundred thousand. After a restart, the rebuild of the index delivers
all records again. `EtaEstimator` makes forecasts of them.
"""

from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from bus.interface import RecordChange
from edge.core.clock import Clock
from edge.core.messages import DEFAULT_WAKE_S
from edge.hosts.endpoints import EndpointRegistry
from edge.hosts.registry import HostRegistry, WakeForecast
from edge.index.index import JobIndex
from edge.index.rows import RowChange
from schemas.endpoint import Endpoint
from schemas.host import HostHeartbeat, ImageStatus, VolumeStatus
from schemas.installation import Pause
from schemas.job import ACTIVE_STATUSES, WAITING_STATUSES, Job, Status, WaitReason, most_relevant_reason
from schemas.job_view import Eta

# A host reports these for some seconds after the pause has ended. Before that, this edge knows more of the pause.
ENDED_PAUSES = frozenset({WaitReason.ENDPOINT_PAUSED, WaitReason.HOST_IN_MAINTENANCE})

LACKING = frozenset({WaitReason.GPU_NONE, WaitReason.REQUIREMENT_UNMET})  # what another host may have


_Downloads = Iterable[ImageStatus | VolumeStatus]


def _pulls(heartbeat: HostHeartbeat) -> _Downloads:
    return (image for image in heartbeat.images if image.state == "pulling")


def _fills(heartbeat: HostHeartbeat) -> _Downloads:
    return (volume for volume in heartbeat.volumes if volume.state == "filling")


def _failed_fills(heartbeat: HostHeartbeat) -> _Downloads:
    return (volume for volume in heartbeat.volumes if volume.state == "missing")


def _no_downloads(_: HostHeartbeat) -> _Downloads:
    return ()


_DOWNLOADS: Mapping[WaitReason, Callable[[HostHeartbeat], _Downloads]] = {
    WaitReason.IMAGE_PULLING: _pulls,
    WaitReason.VOLUME_FILLING: _fills,
    WaitReason.VOLUME_MISSING: _failed_fills,
}


class WakeForecasts(Protocol):
    """The forecasts of the power controller for hosts that are not online."""

    def wake_forecast(self, endpoint: str) -> WakeForecast | None:
        """Return why jobs of `endpoint` wait for a host, which one, and how long its wake takes. None: no forecast."""
        ...

    def has_driver(self, host: str) -> bool:
        """Return whether `host` has a power driver, so that it can be powered on from here."""
        ...


class WaitReasons:
    """Derives the wait reason of a job, and the facts about its hosts that messages and forecasts need."""

    def __init__(self, hosts: HostRegistry, endpoints: EndpointRegistry, power: WakeForecasts, clock: Clock) -> None:
        self._hosts = hosts
        self._endpoints = endpoints
        self._power = power
        self._clock = clock

    def wait_reason(self, job: Job, *, in_window: bool) -> WaitReason:
        """Return the most relevant reason why a waiting job waits.

        `in_window`: whether the job is in its owner's publish window, or may enter it at once.
        """
        now = self._clock()
        conditions = {
            WaitReason.AWAITING_INPUT: bool(job.missing),
            WaitReason.FETCHING_INPUT: bool(job.pending_urls),
            WaitReason.NOT_BEFORE: job.not_before is not None and job.not_before > now,
            WaitReason.BACKOFF: job.backoff_until is not None and job.backoff_until > now,
            WaitReason.ENDPOINT_PAUSED: self.endpoint_pause(job.endpoint) is not None,
            WaitReason.QUOTA: not in_window,
            WaitReason.BEHIND: True,
        }
        reasons = {reason for reason, holds in conditions.items() if holds}
        host_reason = self._host_wait_reason(job.endpoint)
        return most_relevant_reason(reasons | ({host_reason} if host_reason else set())) or WaitReason.BEHIND

    def _host_wait_reason(self, endpoint: str) -> WaitReason | None:
        """Return why no host can start the endpoint now, or None if one can.

        Of several online hosts, the reason of the one closest to starting it. GPU_NONE and REQUIREMENT_UNMET only if no
        other host offers the endpoint, because another host may have what this one lacks. HOST_IN_MAINTENANCE only if
        no other host offers the endpoint or may be woken for it.
        """
        offering, has_maintenance = self._available_hosts(endpoint), self._has_host_in_maintenance(endpoint)
        heartbeats = self._hosts.heartbeats
        reasons = {host: _unschedulable_reason(heartbeats[host], endpoint) for host in offering if host in heartbeats}
        unreadable = {host for host in offering - reasons.keys() if self._hosts.is_online(host)}
        if None in reasons.values() or unreadable:
            return None
        able = [reason for reason in reasons.values() if reason is not None and reason not in LACKING]
        if able:
            return max(able, key=list(WaitReason).index)
        forecast, offline = self._power.wake_forecast(endpoint), offering - reasons.keys()
        if forecast is not None:
            return forecast.reason
        if not offline and has_maintenance:
            return WaitReason.HOST_IN_MAINTENANCE
        if not offline:
            lacking = most_relevant_reason({reason for reason in reasons.values() if reason is not None})
            has_unmet = bool(self._endpoints.unmet(endpoint))
            return lacking or (WaitReason.REQUIREMENT_UNMET if has_unmet else WaitReason.NO_HOST)
        return WaitReason.HOST_OFF if any(map(self._power.has_driver, offline)) else WaitReason.HOST_OFF_UNSWITCHED

    def _able_hosts(self, endpoint: str) -> frozenset[str]:
        """Return the hosts that offer `endpoint` and meet its requirements."""
        return self._endpoints.hosts_offering(endpoint) - self._endpoints.unmet(endpoint).keys()

    def _available_hosts(self, endpoint: str) -> frozenset[str]:
        """Return the hosts that can run `endpoint` and are not in maintenance."""
        return self._able_hosts(endpoint) - self._hosts.pauses.hosts_in_maintenance

    def _has_host_in_maintenance(self, endpoint: str) -> bool:
        return not self._able_hosts(endpoint).isdisjoint(self._hosts.pauses.hosts_in_maintenance)

    def unmet_requirements(self, endpoint: str) -> dict[str, str]:
        """Return the hosts that do not meet the requirements of `endpoint`, each with what it lacks."""
        return self._endpoints.unmet(endpoint)

    def endpoint_pause(self, endpoint: str) -> Pause | None:
        """Return the pause of `endpoint`; None if it is not paused."""
        return self._hosts.pauses.of_endpoint(endpoint)

    def download(self, endpoint: str, reason: WaitReason) -> ImageStatus | VolumeStatus | None:
        """Return the image or volume that jobs of `endpoint` wait for with this reason, as a host fetches it.

        The furthest of several; None if no host fetches one. For VOLUME_MISSING: a volume that could not be fetched.
        """
        downloads = _DOWNLOADS.get(reason, _no_downloads)
        heartbeats = self._hosts.heartbeats.values()
        found = [one for heartbeat in heartbeats for one in downloads(heartbeat) if endpoint in one.endpoints]
        return max(found, key=lambda one: one.percent or 0, default=None)

    def offline_host_names(self, endpoint: str) -> str:
        """Return the names of the hosts that offer `endpoint` and are offline, for a message."""
        return ", ".join(sorted(host for host in self._available_hosts(endpoint) if not self._hosts.is_online(host)))

    def wake_forecast(self, endpoint: str) -> WakeForecast | None:
        """Return the forecast for the host that jobs of `endpoint` wait for; None if there is no such host."""
        return self._power.wake_forecast(endpoint)

    def usual_wake_s(self, endpoint: str) -> float | None:
        """Return the usual seconds of the wake that jobs of `endpoint` wait for; None: not known."""
        forecast = self._power.wake_forecast(endpoint)
        return forecast.wake_s if forecast else None

    def remaining_wake_s(self, endpoint: str) -> float | None:
        """Return the seconds of that wake that are still to come, as far as can be predicted; None: not known."""
        forecast = self._power.wake_forecast(endpoint)
        return forecast.remaining_s if forecast else None

    def candidate_hosts(self, endpoint: str) -> tuple[str, ...]:
        """Return the hosts that will run jobs of `endpoint`: the online ones, else the one to be woken, else all."""
        offering = sorted(self._available_hosts(endpoint) or self._endpoints.hosts_offering(endpoint))
        online = tuple(filter(self._hosts.is_online, offering))
        forecast = None if online else self._power.wake_forecast(endpoint)
        return online or ((forecast.host,) if forecast else tuple(offering))


def _unschedulable_reason(heartbeat: HostHeartbeat, endpoint: str) -> WaitReason | None:
    if heartbeat.draining:
        return WaitReason.PAUSED
    reason = heartbeat.unschedulable.get(endpoint)
    if reason is None or reason in ENDED_PAUSES:
        return None
    return WaitReason(reason) if reason in set(WaitReason) else WaitReason.PAUSED


SAMPLE_MINIMUM = 3  # finished runs; fewer give no forecast
TYPICAL_QUANTILE, SLOW_QUANTILE = 0.5, 0.9
RUNS_PER_ENDPOINT_LIMIT = 100
INPUT_SECONDS_RANGE = (0.001, 30 * 86_400.0)  # plausible seconds of input; clients write any number
ETA_LIMIT = timedelta(days=3650)  # keeps extreme forecasts inside the calendar

# The wait reasons whose end can be predicted, and whether a wake is still to come. Of the others it is not known.
WAKE_EXPECTED: Mapping[WaitReason, bool] = {
    WaitReason.HOST_OFF: True,
    WaitReason.HOST_WAKING: True,
    WaitReason.HOST_BOOTING: True,
    WaitReason.BEHIND: False,
    WaitReason.QUOTA: False,
    WaitReason.BACKOFF: False,
    WaitReason.NOT_BEFORE: False,
}


class FinishedRun(NamedTuple):
    """A successful run: its seconds, the seconds of its input if known, and the UUID of its GPU ("" without one)."""

    run_s: float
    input_s: float | None = None
    gpu: str = ""


class RunTimes(NamedTuple):
    """Run times in ascending order: seconds, and seconds per second of input."""

    run_s: tuple[float, ...] = ()
    run_s_per_input_s: tuple[float, ...] = ()


class RunTimePercentiles(NamedTuple):
    """Seconds from the start of a run to its end. `samples`: the number of finished runs behind the forecast."""

    p50: float
    p90: float
    samples: int


def collect_run_times(runs: Iterable[FinishedRun]) -> RunTimes:
    """Return the sorted run times of these runs."""
    finished = list(runs)
    rates = (run.run_s / run.input_s for run in finished if run.input_s)
    return RunTimes(tuple(sorted(run.run_s for run in finished)), tuple(sorted(rates)))


def estimate_run_time(
    run_times: RunTimes, input_s: float | None = None, elapsed_s: float = 0.0
) -> RunTimePercentiles | None:
    """Return the total time of a run with `input_s` seconds of input, None if there are too few samples.

    A run that has taken `elapsed_s` already is compared with the runs that took longer. If none did, it may end at any
    moment.
    """
    by_size = bool(input_s) and len(run_times.run_s_per_input_s) >= SAMPLE_MINIMUM
    samples, unit = (run_times.run_s_per_input_s, input_s or 1.0) if by_size else (run_times.run_s, 1.0)
    if len(samples) < SAMPLE_MINIMUM:
        return None
    longer = samples[bisect_right(samples, elapsed_s / unit) :] if elapsed_s else samples
    p50, p90 = (
        max(elapsed_s, quantile(longer, q) * unit) if longer else elapsed_s for q in (TYPICAL_QUANTILE, SLOW_QUANTILE)
    )
    return RunTimePercentiles(p50, p90, len(samples))


def quantile(ascending: Sequence[float], q: float) -> float:
    """Return the `q` quantile, with linear interpolation between the two nearest values."""
    rank = q * (len(ascending) - 1)
    below = int(rank)
    above = min(below + 1, len(ascending) - 1)
    return ascending[below] + (ascending[above] - ascending[below]) * (rank - below)


def estimate_queue_s(ahead: int, running: int, slots: int, usual_s: float) -> float:
    """Return the seconds until a slot is free for a job with `ahead` others before it.

    Assumes that the running jobs are half done on average, and that each free slot takes the next job.
    """
    if ahead + running < slots:
        return 0.0
    return (ahead + running / 2) / max(1, slots) * usual_s


class RunHistory:
    """The last successful runs of each endpoint, at most RUNS_PER_ENDPOINT_LIMIT. It follows the index."""

    def __init__(self, index: JobIndex, endpoints: EndpointRegistry) -> None:
        self._endpoints = endpoints
        self._runs: defaultdict[str, deque[FinishedRun]] = defaultdict(lambda: deque(maxlen=RUNS_PER_ENDPOINT_LIMIT))
        self._medians: dict[str, float | None] = {}
        self._subscribers: list[Callable[[str], None]] = []
        index.subscribe_records(self._on_records)

    def subscribe(self, subscriber: Callable[[str], None]) -> None:
        """Call `subscriber` with the endpoint of each new run."""
        self._subscribers.append(subscriber)

    def runs(self, endpoint: str) -> Iterable[FinishedRun]:
        """Return the last runs of the endpoint, the newest last."""
        return self._runs.get(endpoint, ())

    def median_s(self, endpoint: str) -> float | None:
        """Return the median run time on all GPU models in seconds; None if fewer than SAMPLE_MINIMUM runs are known."""
        if endpoint not in self._medians:
            usual = estimate_run_time(collect_run_times(self.runs(endpoint)))
            self._medians[endpoint] = None if usual is None else usual.p50
        return self._medians[endpoint]

    def _on_records(self, changes: Iterable[RecordChange]) -> None:
        for change in changes:
            job = None if change.record is None else change.record.job
            if job is None or job.status is not Status.SUCCEEDED or not job.usage.run_s:
                continue
            gpu = job.claim.gpu_uuids[:1] if job.claim else ()
            run = FinishedRun(job.usage.run_s, _input_seconds(job, self._endpoints.find(job.endpoint)), "".join(gpu))
            self._runs[job.endpoint].append(run)
            self._medians.pop(job.endpoint, None)
            for subscriber in self._subscribers:
                subscriber(job.endpoint)


class EtaEstimator:
    """Predicts start and end of jobs, from the finished runs. It follows the index for the number of running jobs."""

    def __init__(
        self,
        index: JobIndex,
        history: RunHistory,
        wait_reasons: WaitReasons,
        endpoints: EndpointRegistry,
        clock: Clock,
    ) -> None:
        self._history = history
        self._wait_reasons = wait_reasons
        self._endpoints = endpoints
        self._clock = clock
        self._run_times: dict[tuple[str, frozenset[str]], tuple[RunTimes, RunTimePercentiles | None]] = {}
        self._running_by_pool: Counter[str] = Counter()
        history.subscribe(self._on_run)
        index.subscribe_changes(self._on_row_changes)

    def usual_run_time(self, endpoint: str) -> RunTimePercentiles | None:
        """Return the run time of the endpoint's last runs, on the GPU models on which its next jobs will run.

        None: fewer than SAMPLE_MINIMUM of them have succeeded.
        """
        return self._run_times_of(endpoint, self._gpu_models(self._endpoints.find(endpoint)))[1]

    def estimate(self, job: Job, reason: WaitReason | None, ahead: int | None) -> Eta | None:
        """Return the forecast for a running job, or for one that waits for `reason` after `ahead` others.

        None: the job has ended, or its start cannot be predicted.
        """
        if job.status in ACTIVE_STATUSES and job.started_at is not None:
            return self._estimate_running(job, job.started_at)
        if job.status not in WAITING_STATUSES or reason is None or reason not in WAKE_EXPECTED:
            return None
        return self._estimate_waiting(job, reason, ahead or 0)

    def _estimate_waiting(self, job: Job, reason: WaitReason, ahead: int) -> Eta | None:
        endpoint = self._endpoints.find(job.endpoint)
        run_times, usual = self._run_times_of(job.endpoint, self._gpu_models(endpoint))
        input_s = _input_seconds(job, endpoint)
        own = usual if input_s is None else estimate_run_time(run_times, input_s)
        if usual is None or own is None:
            return None
        wake_s = self._expected_wake_s(job.endpoint) if WAKE_EXPECTED[reason] else 0.0
        slots = self._endpoints.offered_slots(job.pool)
        wait_s = wake_s + estimate_queue_s(ahead, self._running_by_pool[job.pool], slots, usual.p50)
        start = max(filter(None, (self._clock() + _capped_timedelta(wait_s), job.earliest_start)))
        return _make_eta(start, own.p50, own.p90, own.samples)

    def _estimate_running(self, job: Job, start: datetime) -> Eta | None:
        gpu = job.claim.gpu_uuids[:1] if job.claim else ()
        names = self._gpu_names() if gpu else {}
        run_times, _ = self._run_times_of(job.endpoint, frozenset(names.get(uuid, uuid) for uuid in gpu))
        elapsed_s = max(0.0, (self._clock() - start).total_seconds())
        total = estimate_run_time(run_times, _input_seconds(job, self._endpoints.find(job.endpoint)), elapsed_s)
        return None if total is None else _make_eta(start, total.p50, total.p90, total.samples)

    def _expected_wake_s(self, endpoint: str) -> float:
        remaining_s = self._wait_reasons.remaining_wake_s(endpoint)
        return DEFAULT_WAKE_S if remaining_s is None else remaining_s

    def _run_times_of(self, endpoint: str, models: frozenset[str]) -> tuple[RunTimes, RunTimePercentiles | None]:
        """Return run times of the endpoint on these GPU models (none: runs without a GPU), and their percentiles."""
        name = (endpoint, models)
        if name not in self._run_times:
            names = self._gpu_names()
            runs = (run for run in self._history.runs(endpoint) if _gpu_model(run, names) in (models or {""}))
            run_times = collect_run_times(runs)
            self._run_times[name] = run_times, estimate_run_time(run_times)
        return self._run_times[name]

    def _gpu_models(self, endpoint: Endpoint | None) -> frozenset[str]:
        """Return the models of the GPUs on which the endpoint's next jobs will run."""
        if endpoint is None or not endpoint.resources.gpus:
            return frozenset()
        candidates = self._wait_reasons.candidate_hosts(endpoint.name)
        return frozenset(
            gpu.name for host in self._endpoints.host_capabilities() if host.host in candidates for gpu in host.gpus
        )

    def _gpu_names(self) -> Mapping[str, str]:
        """Return the model of every GPU that a host has announced, by UUID."""
        return {gpu.uuid: gpu.name for host in self._endpoints.host_capabilities() for gpu in host.gpus}

    def _on_run(self, endpoint: str) -> None:
        self._run_times = {name: times for name, times in self._run_times.items() if name[0] != endpoint}

    def _on_row_changes(self, changes: Sequence[RowChange]) -> None:
        for before, after in changes:
            for row, difference in ((before, -1), (after, 1)):
                if row is not None and row.status in ACTIVE_STATUSES:
                    self._running_by_pool[row.pool] += difference


def _gpu_model(run: FinishedRun, names: Mapping[str, str]) -> str:
    return names.get(run.gpu, run.gpu)


def _input_seconds(job: Job, endpoint: Endpoint | None) -> float | None:
    """Return the seconds of input, if the endpoint names the field that has them and the job has a plausible value."""
    value = job.input.get(endpoint.input_seconds) if endpoint and endpoint.input_seconds else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    minimum, maximum = INPUT_SECONDS_RANGE
    return float(value) if minimum <= value <= maximum else None


def _make_eta(start: datetime, p50_s: float, p90_s: float, samples: int) -> Eta:
    return Eta(start, start + _capped_timedelta(p50_s), start + _capped_timedelta(p90_s), samples)


def _capped_timedelta(seconds: float) -> timedelta:
    return timedelta(seconds=min(seconds, ETA_LIMIT.total_seconds()))
