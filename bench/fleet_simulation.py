"""A fleet in virtual time: jobs, hosts and edges are simulated, and every power decision is made by the real code.

The edges observe, plan and advance the records as `PowerController` does, and write them by compare-and-set. Jobs start
in the order in which they came, in any free slot of a host that takes jobs.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from edge.power import state_machine
from edge.power.host_facts import DriverReport, HostObserver
from edge.power.observation import FleetObservation, HostOffer, PoolJobs
from edge.power.scale_rule import DEFAULT_RUN_S
from schemas.host import HOST_GONE_TIMEOUT_S, ActivityCounts, HostHeartbeat, RunningExecution
from schemas.host_config import CommandHostConfig, PoolConfig
from schemas.power import PowerCallOutcome, PowerCallResult, PowerRecord, PowerState, PowerVerb, ReportedPower

START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
POOL = "lipsync"
STEP_S = 5.0
STOP_S = 20.0
KNOWN_RUNS = 100
RUNS_NEEDED = 3  # as in edge.jobs.forecast


class SimulatedJob(Struct):
    """A job: when it came, how long it runs, and when it started and ended."""

    came_s: float
    run_s: float
    started_s: float | None = None
    ended_s: float | None = None

    @property
    def wait_s(self) -> float:
        """The seconds from its arrival to its start. Raises ValueError if it has not started."""
        if self.started_s is None:
            raise ValueError("the job has not started: let the simulation run longer")
        return self.started_s - self.came_s


class SimulatedHost(Struct):
    """A machine with its runner. `never_boots`: its power driver accepts each call, and the machine stays off.

    `starts` and `stops`: when its power came on and went off. `powered_s`: how long it has been on.
    """

    name: str
    rules: CommandHostConfig
    slots: int = 1
    boot_s: float = 120.0
    never_boots: bool = False
    power: ReportedPower = ReportedPower.OFF
    changes_s: float = 0.0
    runs: list[SimulatedJob] = []
    life: int = 0
    starts: list[float] = []
    stops: list[float] = []
    powered_s: float = 0.0

    def start(self, now: float) -> None:
        if self.power in {ReportedPower.OFF, ReportedPower.STOPPING} and not self.never_boots:
            self.power, self.changes_s = ReportedPower.STARTING, now + self.boot_s
            self.life += 1
            self.starts.append(now)

    def stop(self, now: float) -> None:
        if self.power in {ReportedPower.ON, ReportedPower.STARTING}:
            self.power, self.changes_s = ReportedPower.STOPPING, now + STOP_S

    def live(self, now: float, step_s: float) -> None:
        """Let the machine boot or go off, and its jobs end."""
        if self.power is not ReportedPower.OFF:
            self.powered_s += step_s
        if self.power is ReportedPower.STARTING and now >= self.changes_s:
            self.power = ReportedPower.ON
        if self.power is ReportedPower.STOPPING and now >= self.changes_s:
            self.power = ReportedPower.OFF
            self.stops.append(now)
        for job in [job for job in self.runs if job.started_s is not None and now >= job.started_s + job.run_s]:
            job.ended_s = now
            self.runs.remove(job)

    @property
    def is_up(self) -> bool:
        """Whether the machine is on, so that its runner answers."""
        return self.power is ReportedPower.ON


class StoredRow(NamedTuple):
    """A record of the simulated table, with the revision that a write must name."""

    revision: int
    record: PowerRecord


class SimulatedController:
    """One edge: its observer, and since when it is connected to the broker."""

    def __init__(self, number: int, fleet: "FleetSimulation", pools: Mapping[str, PoolConfig]) -> None:
        self.number = number
        self.is_connected, self.connected_s = True, -HOST_GONE_TIMEOUT_S
        self._calls = 0
        self._fleet = fleet
        self._declared = {host.name: host.rules for host in fleet.hosts}
        self._observer = HostObserver(self._declared, pools, lambda: fleet.now)

    def connect(self, *, is_connected: bool) -> None:
        """Connect the edge to the broker again, or cut it off."""
        if is_connected and not self.is_connected:
            self.connected_s = self._fleet.now
        self.is_connected = is_connected

    def decide(
        self, rows: Mapping[str, StoredRow], fleet: FleetObservation, reported: Mapping[str, ReportedPower]
    ) -> dict[str, tuple[StoredRow, str]]:
        """Return the new records by host, each with the revision that it replaces and the id of a call."""
        fleet = replace(fleet, absence_counts=self._fleet.now - self.connected_s >= HOST_GONE_TIMEOUT_S)
        planned = self._observer.plan({host: row.record for host, row in rows.items()}, fleet)
        made: dict[str, tuple[StoredRow, str]] = {}
        for host, row in rows.items():
            report = DriverReport(can_report_state=True, reported_power=reported[host])
            facts = self._observer.observe_host(host, row.record, fleet, planned, report)
            self._calls += 1
            call_id = f"call-{self.number}-{self._calls}"
            record = state_machine.advance(row.record, facts, self._declared[host], call_id)
            if record is not None:
                made[host] = StoredRow(row.revision, record), call_id
        return made

    def is_stop_vetoed(self, host: str, rows: Mapping[str, StoredRow], fleet: FleetObservation) -> bool:
        """Return whether a decided stop must not be made."""
        records = {name: row.record for name, row in rows.items()}
        facts = self._observer.planned_facts(host, fleet, self._observer.plan_again(records, fleet))
        return state_machine.stop_veto(records[host], facts, self._declared[host]) is not None


class FleetSimulation:
    """Hosts, edges and jobs. `looks`: for each look in which a start was made, the hosts that were started."""

    def __init__(
        self,
        hosts: Sequence[SimulatedHost],
        jobs: Sequence[SimulatedJob],
        pools: Mapping[str, PoolConfig],
        edges: int = 1,
    ) -> None:
        self.now = 0.0
        self.hosts = list(hosts)
        self.jobs = list(jobs)
        self.rows = {host.name: StoredRow(1, state_machine.initial_record(START)) for host in hosts}
        self.edges = [SimulatedController(number, self, pools) for number in range(edges)]
        self.looks: list[frozenset[str]] = []
        self._arrivals = deque(sorted(jobs, key=lambda job: job.came_s))
        self.queue: deque[SimulatedJob] = deque()
        self._finished: deque[float] = deque(maxlen=KNOWN_RUNS)
        self._by_name = {host.name: host for host in hosts}

    def run(self, until_s: float, *, each_step: Callable[[], None] | None = None) -> None:
        """Let time pass in steps of STEP_S. `each_step` is called after each step."""
        while self.now < until_s:
            self.step()
            if each_step is not None:
                each_step()

    def step(self) -> None:
        """Let STEP_S pass: jobs come, end and start, and every edge looks."""
        self.now += STEP_S
        for host in self.hosts:
            ended = list(host.runs)
            host.live(self.now, STEP_S)
            self._finished.extend(job.run_s for job in ended if job.ended_s is not None)
        while self._arrivals and self._arrivals[0].came_s <= self.now:
            self.queue.append(self._arrivals.popleft())
        self._start_jobs()
        self._look()

    def _start_jobs(self) -> None:
        for host in self.hosts:
            ordered_off = self.rows[host.name].record.state in {PowerState.DRAINING, PowerState.STOPPING}
            while self.queue and host.is_up and not ordered_off and len(host.runs) < host.slots:
                job = self.queue.popleft()
                job.started_s = self.now
                host.runs.append(job)

    def _look(self) -> None:
        """Let every edge look. They decide on the same rows, so that their writes conflict."""
        fleet, rows = self.observe(), dict(self.rows)
        reported = {host.name: host.power for host in self.hosts}
        decided = [(edge, edge.decide(rows, fleet, reported)) for edge in self.edges if edge.is_connected]
        started: set[str] = set()
        for edge, made in decided:
            for host, (row, call_id) in made.items():
                if self.rows[host].revision == row.revision:
                    started |= self._write(edge, host, row.record, call_id)
        if started:
            self.looks.append(frozenset(started))

    def _write(self, edge: SimulatedController, host: str, record: PowerRecord, call_id: str) -> set[str]:
        """Store the record and make its call. Return the host if it was started."""
        self._store(host, record)
        if record.call is None or record.call.id != call_id:
            return set()
        machine, verb = self._by_name[host], record.call.verb
        if verb is PowerVerb.STOP and edge.is_stop_vetoed(host, self.rows, self.observe()):
            result = PowerCallResult(PowerCallOutcome.FAILED, "it is in use")
        else:
            (machine.start if verb is PowerVerb.START else machine.stop)(self.now)
            result = PowerCallResult(PowerCallOutcome.DONE)
        answered = state_machine.with_result(record, call_id, result, jitter=0.5)
        if answered is not None:
            self._store(host, answered)
        return {host} if verb is PowerVerb.START else set()

    def _store(self, host: str, record: PowerRecord) -> None:
        self.rows[host] = StoredRow(self.rows[host].revision + 1, record)

    def observe(self) -> FleetObservation:
        """Return what an edge reads now."""
        running = sum(len(host.runs) for host in self.hosts)
        run_s = median(self._finished) if len(self._finished) >= RUNS_NEEDED else DEFAULT_RUN_S
        waiting = len(self.queue)
        jobs = {POOL: PoolJobs(waiting, waiting, running, run_s)} if waiting or running else {}
        return FleetObservation(
            at=START + timedelta(seconds=self.now),
            absence_counts=True,
            heartbeats={host.name: self._heartbeat(host) for host in self.hosts if host.is_up},
            offers={host.name: HostOffer({POOL: host.slots}) for host in self.hosts},
            servable_pools={host.name: frozenset({POOL}) for host in self.hosts if host.is_up},
            pools=jobs,
            active_jobs={host.name: len(host.runs) for host in self.hosts if host.runs},
        )

    def _heartbeat(self, host: SimulatedHost) -> HostHeartbeat:
        at = START + timedelta(seconds=self.now)
        ordered_off = self.rows[host.name].record.state in {PowerState.DRAINING, PowerState.STOPPING}
        return HostHeartbeat(
            host=host.name,
            incarnation=f"life-{host.life}",
            at=at,
            since=at,
            draining=ordered_off,
            slots=host.slots,
            running=tuple(RunningExecution("ann", f"job-{number}", POOL, 1, 1) for number in range(len(host.runs))),
            activity=ActivityCounts(),
        )

    @property
    def powered_s(self) -> float:
        """The seconds that all hosts have been on, together."""
        return sum(host.powered_s for host in self.hosts)

    def most_cycles_an_hour(self) -> int:
        """Return the most power cycles of one host in any hour: a stop and the start after it, both in that hour."""
        return max((_most_cycles(host.starts, host.stops) for host in self.hosts), default=0)


def _most_cycles(starts: Sequence[float], stops: Sequence[float]) -> int:
    cycles = list(zip(stops, starts[1:], strict=False))
    return max(
        (
            sum(stop <= off and on <= stop + 3600 for off, on in cycles[first:])
            for first, (stop, _) in enumerate(cycles)
        ),
        default=0,
    )
