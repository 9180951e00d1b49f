"""How long a run takes, told by those that have ended. Pure: nothing here knows a clock, a job or a card.

Where the endpoint names the seconds of its input, runs are compared by their seconds per second of input; where it
does not, or one of the two sides has no size, by the whole run.
"""

from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from bus.interface import RecordChange
from edge.core.clock import Clock
from edge.core.messages import DEFAULT_WAKE_S
from edge.hosts.endpoints import EndpointRegistry
from edge.hosts.registry import HostRegistry
from edge.index.index import JobIndex
from edge.index.row import RowChange
from schemas.endpoint import Endpoint
from schemas.job import Job
from schemas.job_view import Eta
from schemas.problems import ProblemError
from schemas.status import ACTIVE_STATUSES, WAITING_STATUSES, Status, WaitReason

SAMPLE_MINIMUM = 3  # runs: fewer say nothing
TYPICAL_QUANTILE, SLOW_QUANTILE = 0.5, 0.9


class FinishedRun(NamedTuple):
    """One that ended well: its seconds, its seconds of input where they are known, the card it had ("": none)."""

    run_s: float
    input_s: float | None = None
    gpu: str = ""


class RunTimes(NamedTuple):
    """Runs in ascending order: seconds each, and seconds for each second of input."""

    run_s: tuple[float, ...] = ()
    run_s_per_input_s: tuple[float, ...] = ()


class RunTimePercentiles(NamedTuple):
    """Seconds from the start of a run to its end: half of the runs take no longer than `p50`; `samples` runs told."""

    p50: float
    p90: float
    samples: int


def collect_run_times(runs: Iterable[FinishedRun]) -> RunTimes:
    """The pace of these runs."""
    told = list(runs)
    rates = (run.run_s / run.input_s for run in told if run.input_s)
    return RunTimes(tuple(sorted(run.run_s for run in told)), tuple(sorted(rates)))


def estimate_run_time(of: RunTimes, size: float | None = None, elapsed: float = 0.0) -> RunTimePercentiles | None:
    """How long a run with `size` seconds of input takes in all, None when too few have told.

    One that runs for `elapsed` seconds already is measured by those that took longer than that; by none of them it
    may end at any moment.
    """
    by_size = bool(size) and len(of.run_s_per_input_s) >= SAMPLE_MINIMUM
    samples, unit = (of.run_s_per_input_s, size or 1.0) if by_size else (of.run_s, 1.0)
    if len(samples) < SAMPLE_MINIMUM:
        return None
    longer = samples[bisect_right(samples, elapsed / unit) :] if elapsed else samples
    p50, p90 = (
        max(elapsed, quantile(longer, q) * unit) if longer else elapsed for q in (TYPICAL_QUANTILE, SLOW_QUANTILE)
    )
    return RunTimePercentiles(p50, p90, len(samples))


def quantile(ascending: Sequence[float], q: float) -> float:
    """The value below which the share `q` of them lies, between the two nearest in proportion."""
    place = q * (len(ascending) - 1)
    below = int(place)
    above = min(below + 1, len(ascending) - 1)
    return ascending[below] + (ascending[above] - ascending[below]) * (place - below)


def estimate_queue_s(ahead: int, running: int, slots: int, usual_s: float) -> float:
    """Seconds until a slot is free for a job with `ahead` others before it.

    What runs now is half done on average, and every slot takes the next job when it is free.
    """
    if ahead + running < slots:
        return 0.0
    return (ahead + running / 2) / max(1, slots) * usual_s


# MERGED edge/services/estimate.py: When a job should start and end: by this endpoint's own last runs on this kind of
# card, the wake, and the queue. / The runs are those of the records that go by on their way to the index, so nothing
# is searched for when a view is made: / an estimate costs the same whether one job waits or a hundred thousand. After
# a restart the index's own reading of all / records brings them back.


RUNS_PER_ENDPOINT_LIMIT = 100  # runs of each endpoint
INPUT_SECONDS_RANGE = (0.001, 30 * 86_400.0)  # seconds of input that can be believed: clients write what they like
ETA_LIMIT = timedelta(days=3650)  # whatever the numbers say, calendars end

# The reasons whose end can be foretold, and whether a wake is still to come. Of any other nobody knows when it passes.
WAKE_EXPECTED: Mapping[WaitReason, bool] = {
    WaitReason.HOST_OFF: True,
    WaitReason.HOST_WAKING: True,
    WaitReason.HOST_BOOTING: True,
    WaitReason.BEHIND: False,
    WaitReason.QUOTA: False,
    WaitReason.BACKOFF: False,
    WaitReason.NOT_BEFORE: False,
}


class EtaEstimator:
    """Listens to the index."""

    def __init__(self, index: JobIndex, hosts: HostRegistry, catalog: EndpointRegistry, now: Clock) -> None:
        self._hosts = hosts
        self._catalog = catalog
        self._now = now
        self._runs: defaultdict[str, deque[FinishedRun]] = defaultdict(lambda: deque(maxlen=RUNS_PER_ENDPOINT_LIMIT))
        self._run_times: dict[tuple[str, frozenset[str]], tuple[RunTimes, RunTimePercentiles | None]] = {}
        self._running_by_pool: Counter[str] = Counter()
        index.subscribe_records(self._on_records)
        index.subscribe_changes(self._on_row_changes)

    def estimate(self, job: Job, reason: WaitReason | None, ahead: int | None) -> Eta | None:
        """Of a job that waits for `reason` behind `ahead` others, or runs. None: it has ended, or nobody can tell."""
        if job.status in ACTIVE_STATUSES and job.started_at is not None:
            return self._estimate_running(job, job.started_at)
        if job.status not in WAITING_STATUSES or reason is None or reason not in WAKE_EXPECTED:
            return None
        return self._estimate_waiting(job, reason, ahead or 0)

    def _estimate_waiting(self, job: Job, reason: WaitReason, ahead: int) -> Eta | None:
        endpoint = self._find_endpoint(job.endpoint)
        known, usual = self._run_times_of(job.endpoint, self._gpu_models(endpoint))
        size = _input_seconds(job, endpoint)
        mine = usual if size is None else estimate_run_time(known, size)
        if usual is None or mine is None:
            return None
        wake_s = self._expected_wake_s(job.endpoint) if WAKE_EXPECTED[reason] else 0.0
        slots = self._catalog.offered_slots(job.pool)
        wait_s = wake_s + estimate_queue_s(ahead, self._running_by_pool[job.pool], slots, usual.p50)
        start = max(filter(None, (self._now() + _capped_timedelta(wait_s), job.earliest_start)))
        return _make_eta(start, mine.p50, mine.p90, mine.samples)

    def _estimate_running(self, job: Job, start: datetime) -> Eta | None:
        card = job.claim.gpu_uuids[:1] if job.claim else ()
        names = self._gpu_names() if card else {}
        known, _ = self._run_times_of(job.endpoint, frozenset(names.get(uuid, uuid) for uuid in card))
        elapsed = max(0.0, (self._now() - start).total_seconds())
        left = estimate_run_time(known, _input_seconds(job, self._find_endpoint(job.endpoint)), elapsed)
        return None if left is None else _make_eta(start, left.p50, left.p90, left.samples)

    def _expected_wake_s(self, endpoint: str) -> float:
        left = self._hosts.remaining_wake_s(endpoint)
        return DEFAULT_WAKE_S if left is None else left

    def _run_times_of(self, endpoint: str, models: frozenset[str]) -> tuple[RunTimes, RunTimePercentiles | None]:
        """Of the endpoint's runs on cards of these models (none: without a card), and how long those take."""
        name = (endpoint, models)
        if name not in self._run_times:
            names = self._gpu_names()
            runs = (run for run in self._runs[endpoint] if _gpu_model(run, names) in (models or {""}))
            known = collect_run_times(runs)
            self._run_times[name] = known, estimate_run_time(known)
        return self._run_times[name]

    def _gpu_models(self, endpoint: Endpoint | None) -> frozenset[str]:
        """The models of the cards that work for the endpoint will have."""
        if endpoint is None or not endpoint.resources.gpus:
            return frozenset()
        takers = self._hosts.candidate_hosts(endpoint.name)
        return frozenset(
            gpu.name for offer in self._catalog.host_capabilities() if offer.host in takers for gpu in offer.gpus
        )

    def _gpu_names(self) -> Mapping[str, str]:
        """Every card that was ever offered, by UUID."""
        return {gpu.uuid: gpu.name for offer in self._catalog.host_capabilities() for gpu in offer.gpus}

    def _find_endpoint(self, name: str) -> Endpoint | None:
        try:
            return self._catalog.get(name)
        except ProblemError:
            return None

    def _on_records(self, changes: Iterable[RecordChange]) -> None:
        for change in changes:
            job = None if change.record is None else change.record.job
            if job is None or job.status is not Status.SUCCEEDED or not job.usage.run_s:
                continue
            card = job.claim.gpu_uuids[:1] if job.claim else ()
            run = FinishedRun(job.usage.run_s, _input_seconds(job, self._find_endpoint(job.endpoint)), "".join(card))
            self._runs[job.endpoint].append(run)
            self._run_times = {name: known for name, known in self._run_times.items() if name[0] != job.endpoint}

    def _on_row_changes(self, steps: Sequence[RowChange]) -> None:
        for before, after in steps:
            for place, more in ((before, -1), (after, 1)):
                if place is not None and place.status in ACTIVE_STATUSES:
                    self._running_by_pool[place.pool] += more


def _gpu_model(run: FinishedRun, names: Mapping[str, str]) -> str:
    return names.get(run.gpu, run.gpu)


def _input_seconds(job: Job, endpoint: Endpoint | None) -> float | None:
    """The seconds of input, where the endpoint names the number field that tells them and the job has it."""
    named = job.input.get(endpoint.input_seconds) if endpoint and endpoint.input_seconds else None
    if isinstance(named, bool) or not isinstance(named, int | float):
        return None
    least, most = INPUT_SECONDS_RANGE
    return float(named) if least <= named <= most else None


def _make_eta(start: datetime, p50_s: float, p90_s: float, samples: int) -> Eta:
    return Eta(start, start + _capped_timedelta(p50_s), start + _capped_timedelta(p90_s), samples)


def _capped_timedelta(seconds: float) -> timedelta:
    return timedelta(seconds=min(seconds, ETA_LIMIT.total_seconds()))
