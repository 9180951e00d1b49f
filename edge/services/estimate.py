"""When a job should start and end: by this endpoint's own last runs on this kind of card, the wake, and the queue.

The runs are those of the records that go by on their way to the index, so nothing is searched for when a view is made:
an estimate costs the same whether one job waits or a hundred thousand. After a restart the index's own reading of all
records brings them back.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from bus.port import Change
from edge.services.catalog import Catalog
from edge.services.clock import Clock
from edge.services.hosts import HostWatch
from edge.services.index import Index
from edge.services.messages import DEFAULT_WAKE_S
from edge.services.runtimes import Pace, Run, Spread, pace, queue_s, spread
from edge.services.standing import Step
from schemas.endpoint import Endpoint
from schemas.errors import Refused
from schemas.job import Job
from schemas.reasons import Reason
from schemas.view import Eta
from schemas.words import ACTIVE, WAITING, Status

REMEMBERED = 100  # runs of each endpoint
SIZES_S = (0.001, 30 * 86_400.0)  # seconds of input that can be believed: clients write what they like
FARTHEST = timedelta(days=3650)  # whatever the numbers say, calendars end

# The reasons whose end can be foretold, and whether a wake is still to come. Of any other nobody knows when it passes.
WAKES: Mapping[Reason, bool] = {
    Reason.HOST_OFF: True,
    Reason.HOST_WAKING: True,
    Reason.HOST_BOOTING: True,
    Reason.BEHIND: False,
    Reason.QUOTA: False,
    Reason.BACKOFF: False,
    Reason.NOT_BEFORE: False,
}


class Estimator:
    """Listens to the index."""

    def __init__(self, index: Index, hosts: HostWatch, catalog: Catalog, now: Clock) -> None:
        self._hosts = hosts
        self._catalog = catalog
        self._now = now
        self._runs: defaultdict[str, deque[Run]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._paces: dict[tuple[str, frozenset[str]], tuple[Pace, Spread | None]] = {}
        self._running: Counter[str] = Counter()
        index.tap(self._ran)
        index.watch(self._moved)

    def eta(self, job: Job, reason: Reason | None, ahead: int | None) -> Eta | None:
        """Of a job that waits for `reason` behind `ahead` others, or runs. None: it has ended, or nobody can tell."""
        if job.status in ACTIVE and job.started_at is not None:
            return self._ends(job, job.started_at)
        if job.status not in WAITING or reason is None or reason not in WAKES:
            return None
        return self._starts(job, reason, ahead or 0)

    def _starts(self, job: Job, reason: Reason, ahead: int) -> Eta | None:
        endpoint = self._endpoint(job.endpoint)
        known, usual = self._pace(job.endpoint, self._models(endpoint))
        size = _size(job, endpoint)
        mine = usual if size is None else spread(known, size)
        if usual is None or mine is None:
            return None
        wake_s = self._wake_s(job.endpoint) if WAKES[reason] else 0.0
        slots = self._catalog.slots(job.pool)
        wait_s = wake_s + queue_s(ahead, self._running[job.pool], slots, usual.p50)
        start = max(filter(None, (self._now() + _span(wait_s), job.due)))
        return _eta(start, mine.p50, mine.p90, mine.samples)

    def _ends(self, job: Job, start: datetime) -> Eta | None:
        card = job.claim.gpus[:1] if job.claim else ()
        names = self._names() if card else {}
        known, _ = self._pace(job.endpoint, frozenset(names.get(uuid, uuid) for uuid in card))
        elapsed = max(0.0, (self._now() - start).total_seconds())
        left = spread(known, _size(job, self._endpoint(job.endpoint)), elapsed)
        return None if left is None else _eta(start, left.p50, left.p90, left.samples)

    def _wake_s(self, endpoint: str) -> float:
        left = self._hosts.wake_left_s(endpoint)
        return DEFAULT_WAKE_S if left is None else left

    def _pace(self, endpoint: str, models: frozenset[str]) -> tuple[Pace, Spread | None]:
        """Of the endpoint's runs on cards of these models (none: without a card), and how long those take."""
        name = (endpoint, models)
        if name not in self._paces:
            names = self._names()
            runs = (run for run in self._runs[endpoint] if _model(run, names) in (models or {""}))
            known = pace(runs)
            self._paces[name] = known, spread(known)
        return self._paces[name]

    def _models(self, endpoint: Endpoint | None) -> frozenset[str]:
        """The models of the cards that work for the endpoint will have."""
        if endpoint is None or not endpoint.resources.gpus:
            return frozenset()
        takers = self._hosts.takers(endpoint.name)
        return frozenset(gpu.name for offer in self._catalog.offers() if offer.host in takers for gpu in offer.gpus)

    def _names(self) -> Mapping[str, str]:
        """Every card that was ever offered, by UUID."""
        return {gpu.uuid: gpu.name for offer in self._catalog.offers() for gpu in offer.gpus}

    def _endpoint(self, name: str) -> Endpoint | None:
        try:
            return self._catalog.get(name)
        except Refused:
            return None

    def _ran(self, changes: Iterable[Change]) -> None:
        for change in changes:
            job = None if change.recorded is None else change.recorded.job
            if job is None or job.status is not Status.SUCCEEDED or not job.usage.run_s:
                continue
            card = job.claim.gpus[:1] if job.claim else ()
            run = Run(job.usage.run_s, _size(job, self._endpoint(job.endpoint)), "".join(card))
            self._runs[job.endpoint].append(run)
            self._paces = {name: known for name, known in self._paces.items() if name[0] != job.endpoint}

    def _moved(self, steps: Sequence[Step]) -> None:
        for before, after in steps:
            for place, more in ((before, -1), (after, 1)):
                if place is not None and place.status in ACTIVE:
                    self._running[place.pool] += more


def _model(run: Run, names: Mapping[str, str]) -> str:
    return names.get(run.card, run.card)


def _size(job: Job, endpoint: Endpoint | None) -> float | None:
    """The seconds of input, where the endpoint names the number field that tells them and the job has it."""
    named = job.input.get(endpoint.input_seconds) if endpoint and endpoint.input_seconds else None
    if isinstance(named, bool) or not isinstance(named, int | float):
        return None
    least, most = SIZES_S
    return float(named) if least <= named <= most else None


def _eta(start: datetime, p50_s: float, p90_s: float, samples: int) -> Eta:
    return Eta(start, start + _span(p50_s), start + _span(p90_s), samples)


def _span(seconds: float) -> timedelta:
    return timedelta(seconds=min(seconds, FARTHEST.total_seconds()))
