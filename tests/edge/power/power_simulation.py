"""A simulation of a host, its power driver, its runner and two edges, without a broker and without waiting.

`now` is the true time. Each edge has a clock that may jump, and a monotonic clock that stops while it is suspended.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from msgspec import Struct

from edge.power import state_machine
from edge.power.conditions import HeartbeatFacts, HostFacts, power_prohibition
from edge.power.host_facts import Stopwatch
from schemas.host import HEARTBEAT_TTL_S, HOST_GONE_TIMEOUT_S
from schemas.host_config import CommandHostConfig
from schemas.power import (
    ForeignUse,
    PowerCallOutcome,
    PowerCallResult,
    PowerRecord,
    PowerState,
    PowerVerb,
    ReportedPower,
)

START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
RULES = CommandHostConfig(on=("on",), off=("off",), state=("state",), timezone="UTC")
BOOT_S, SHUT_S = 20.0, 30.0
LOST_AFTER_S = 600.0  # the reconciler releases the jobs of a host that has been gone for this long
HEARTBEAT_INTERVAL_S = 5.0


class PendingCall(NamedTuple):
    """A driver call that was sent and has not taken effect yet."""

    edge: int
    id: str
    verb: PowerVerb
    sent: float  # on that edge's stopwatch


class PendingWrite(NamedTuple):
    """A record that an edge is about to write over `revision`."""

    revision: int
    record: PowerRecord
    facts: HostFacts
    id: str


class RecordWrite(NamedTuple):
    """A write: the records before and after, the facts, and the time."""

    before: PowerRecord
    after: PowerRecord
    facts: HostFacts
    now: float


class SimulatedEdge:
    """A simulated controller: its clocks, its connection, and its decisions that are not written yet."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.restart()

    def restart(self) -> None:
        self.jumped = timedelta()
        self.running = 0.0
        self.connected_s = 0.0
        self.suspended = False
        self.decision: PendingWrite | None = None
        self.watch = Stopwatch(lambda: self.running)


class SimulatedMachine(Struct):
    """The machine. `changes_at`: when a boot or a shutdown ends."""

    power: ReportedPower = ReportedPower.OFF
    changes_at: float = 0.0
    broken: bool = False

    def start(self, now: float) -> None:
        if self.power in {ReportedPower.OFF, ReportedPower.STOPPING} and not self.broken:
            self.power, self.changes_at = ReportedPower.STARTING, now + BOOT_S

    def stop(self, now: float) -> None:
        if self.power in {ReportedPower.ON, ReportedPower.STARTING}:
            self.power, self.changes_at = ReportedPower.STOPPING, now + SHUT_S

    def live(self, now: float) -> None:
        settled = {ReportedPower.STARTING: ReportedPower.ON, ReportedPower.STOPPING: ReportedPower.OFF}
        if self.power in settled and now >= self.changes_at:
            self.power = settled[self.power]


class SimulatedRunner(Struct):
    """The runner process. `work`: its executions, each recorded as claimed until it is released."""

    life: int = 0
    greeted: int = 0
    up: bool = False
    crashed: bool = False
    draining: bool = False
    deaf: bool = False
    work: int = 0
    used: bool = False
    last_beat: float = -1e9


class PowerSimulation:
    """The whole simulation. Without `tells` the power driver cannot report a state."""

    def __init__(self, tells: bool = True) -> None:
        self.tells = tells
        self.now = 0.0
        self.revision = 1
        self.record = state_machine.initial_record(START)
        self.edges = [SimulatedEdge(0), SimulatedEdge(1)]
        self.machine, self.runner = SimulatedMachine(), SimulatedRunner()
        self.broker_up = True
        self.queue = 0
        self.records_running = 0
        self.lie: ReportedPower | None = None
        self.flights: list[PendingCall] = []
        self.crowded = False
        self.is_reserved = self.is_released = self.has_pool_rule = False  # what the plan of the pools says of the host
        self.calls = 0
        self._written: list[RecordWrite] = []
        self.stops: list[tuple[PowerRecord, bool]] = []
        self.starts = 0

    # ── time passes ──────────────────────────────────────────────────────────────────────────────────────────────

    def live(self, seconds: float) -> None:
        """Advance the time in steps of a heartbeat."""
        end = self.now + seconds
        while self.now < end:
            step = min(HEARTBEAT_INTERVAL_S, end - self.now)
            self.now += step
            for edge in self.edges:
                if not edge.suspended:
                    edge.running += step
                    edge.connected_s = edge.connected_s + step if self.broker_up else 0.0
            self.machine.live(self.now)
            self._runner_lives()
            self._calls_time_out()
            if self.now - self.runner.last_beat > LOST_AFTER_S and self.records_running:
                self.queue, self.records_running = self.queue + self.records_running, 0

    def _runner_lives(self) -> None:
        runner, on = self.runner, self.machine.power is ReportedPower.ON
        if not on and runner.up:
            runner.up, runner.draining, runner.work, runner.used = False, False, 0, False
        if on and not runner.up and not runner.crashed:
            runner.up, runner.life, runner.draining = True, runner.life + 1, False
        if runner.up and self.broker_up:
            if runner.greeted < runner.life:  # the first heartbeat releases the jobs before it
                runner.greeted = runner.life
                self.queue, self.records_running = self.queue + self.records_running, 0
            runner.last_beat = self.now
            if not runner.deaf:
                runner.draining = self.record.state in {PowerState.DRAINING, PowerState.STOPPING}

    def claim(self) -> None:
        """Let the runner claim a job, if it may."""
        free = self.runner.up and not self.runner.draining and not self.runner.work
        if free and self.broker_up and self.queue:
            self.queue, self.runner.work, self.records_running = self.queue - 1, 1, self.records_running + 1

    def finish(self) -> None:
        """End the running job. Without a broker the runner keeps the result."""
        if self.runner.up and self.broker_up and self.runner.work:
            self.runner.work, self.records_running = self.runner.work - 1, max(0, self.records_running - 1)

    def beating(self) -> bool:
        """Return whether HOSTS has a heartbeat of the host."""
        return self.now - self.runner.last_beat <= HEARTBEAT_TTL_S

    # ── an edge ticks, writes, calls ─────────────────────────────────────────────────────────────────────────────

    def at(self, edge: SimulatedEdge) -> datetime:
        return START + timedelta(seconds=self.now) + edge.jumped

    def facts(self, edge: SimulatedEdge) -> HostFacts:
        record, runner = self.record, self.runner
        people: frozenset[ForeignUse] = frozenset({"users"}) if runner.used else frozenset()
        heart = HeartbeatFacts(f"life-{runner.life}", runner.draining, runner.work, people) if self.beating() else None
        steady = edge.connected_s >= HOST_GONE_TIMEOUT_S
        waiting = self.queue > 0 or (heart is None and steady and self.records_running > 0)
        idle = (
            heart is not None
            and not runner.used
            and not waiting
            and not self.records_running
            and not runner.work
            and steady
        )
        call = record.call and (record.call.id, record.call.result is None)
        idle_s = edge.watch.seconds("idle", idle)
        is_up = record.state in {PowerState.ONLINE, PowerState.DRAINING}
        wanted = self.is_reserved or (waiting and not self.is_released)
        called_s = edge.watch.seconds("called", wanted)
        return HostFacts(
            at=self.at(edge),
            absence_counts=steady,
            heartbeat=heart,
            can_report_state=self.tells,
            reported_power=self.provider(),
            wake_requested=wanted,
            has_queued_work=waiting,
            is_reserved=self.is_reserved,
            is_released=self.is_released and not self.is_reserved and is_up,
            has_pool_rule=self.has_pool_rule,
            active_jobs=self.records_running,
            wake_requested_s=called_s,
            idle_s=idle_s if idle else 0.0,
            in_state_s=edge.watch.seconds("state", (record.state, record.since)),
            call_s=edge.watch.seconds("call", call),
        )

    def provider(self) -> ReportedPower:
        if not self.tells:
            return ReportedPower.UNKNOWN
        return self.lie or self.machine.power

    def look(self, edge: SimulatedEdge) -> None:
        """Decide. The write happens later, unless another edge writes first."""
        edge.decision = None
        if self.broker_up and not edge.suspended:
            self.calls += 1
            call_id = f"call-{self.calls}"
            facts = self.facts(edge)
            advanced = state_machine.advance(self.record, facts, RULES, call_id)
            if advanced is not None:
                edge.decision = PendingWrite(self.revision, advanced, facts, call_id)

    def write(self, edge: SimulatedEdge) -> None:
        """Write by compare-and-set, then make the call; a stop only if nothing changed in between."""
        decision, edge.decision = edge.decision, None
        if decision is None or not self.broker_up or edge.suspended or decision.revision != self.revision:
            return
        self._written.append(RecordWrite(self.record, decision.record, decision.facts, self.now))
        self._store(decision.record)
        call = decision.record.call
        if call is None or call.id != decision.id:
            return
        why = state_machine.stop_veto(self.record, self.facts(edge), RULES) if call.verb is PowerVerb.STOP else None
        if why is None:
            self._send(PendingCall(edge.number, call.id, call.verb, edge.running))
        else:
            self.answer(call.id, PowerCallResult(PowerCallOutcome.FAILED, why))

    def _send(self, flight: PendingCall) -> None:
        self.flights.append(flight)
        if flight.verb is PowerVerb.START:
            self.starts += 1
        else:
            edge = self.edges[flight.edge]
            has_work = self.queue > 0 and not self.is_released
            is_needed = self.is_reserved or has_work or self.runner.used
            wanted = is_needed and power_prohibition(self.record, self.at(edge), RULES) is None
            self.stops.append((self.record, self.beating() and (self.runner.work > 0 or wanted)))

    def take_written(self) -> list[RecordWrite]:
        """Return the writes since the last call of this method."""
        taken, self._written = self._written, []
        return taken

    def _store(self, record: PowerRecord) -> None:
        self.record = record
        self.revision += 1

    def answer(self, call_id: str, answer: PowerCallResult) -> None:
        """Write the result, by the edge that made the call."""
        record = state_machine.with_result(self.record, call_id, answer, jitter=0.5)
        if record is not None and self.broker_up:
            self._store(record)

    # ── calls end ────────────────────────────────────────────────────────────────────────────────────────────────

    def land(self, flight: PendingCall, outcome: PowerCallOutcome, *, effect: bool, heard: bool = True) -> None:
        """Let the call reach the driver, with or without an effect and with any result, which may be lost."""
        self.flights.remove(flight)
        if effect:
            act: Callable[[float], None] = self.machine.start if flight.verb is PowerVerb.START else self.machine.stop
            act(self.now)
        if heard:
            self.answer(flight.id, PowerCallResult(outcome, "says the test"))

    def _calls_time_out(self) -> None:
        for flight in tuple(self.flights):
            edge = self.edges[flight.edge]
            if edge.running - flight.sent >= RULES.timeout:
                self.land(flight, PowerCallOutcome.FAILED, effect=False)

    def leave(self, edge: SimulatedEdge) -> None:
        """Crash the edge. Its sent calls still take effect, but their results are lost."""
        for flight in [flight for flight in self.flights if flight.edge == edge.number]:
            self.land(flight, PowerCallOutcome.DONE, effect=True, heard=False)

    # ── nothing fails ────────────────────────────────────────────────────────────────────────────────────────────

    def turn(self, edge: SimulatedEdge, *, landing: bool = True) -> None:
        """Run one tick of an edge. Its calls succeed, or hang."""
        self.look(edge)
        self.write(edge)
        for flight in tuple(self.flights) if landing else ():
            self.land(flight, PowerCallOutcome.DONE, effect=True)

    def run(self, seconds: float, *, working: bool = True, landing: bool = True) -> None:
        """Run ticks of both edges, and the runner."""
        end = self.now + seconds
        while self.now < end:
            for edge in self.edges:
                self.turn(edge, landing=landing)
                self.crowded = self.crowded or len(self.flights) > 1
            if working:
                self.claim()
            self.live(HEARTBEAT_INTERVAL_S)
            if working:
                self.finish()

    def heal(self) -> None:
        """Repair everything, and acknowledge the fault."""
        self.broker_up, self.lie, self.machine.broken, self.runner.crashed = True, None, False, False
        self.runner.deaf, self.runner.used = False, False
        self.is_reserved = self.is_released = self.has_pool_rule = False
        for edge in self.edges:
            edge.suspended = False
        self._store(state_machine.with_override(self.record, None))
