"""A property test of power control: gaps, suspends, clock jumps, lost heartbeats, a failing driver, two edges."""

from datetime import timedelta

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge.power import state_machine
from schemas.power import PowerCallOutcome, PowerOverride, PowerState, PowerVerb, ReportedPower
from tests.edge.power.power_simulation import RULES, PowerSimulation, RecordWrite

EDGES = st.integers(0, 1)
GAPS = st.sampled_from([1.0, 5.0, 20.0, 60.0, 100.0, 300.0, 700.0, 1000.0])
JUMPS = st.sampled_from([-86_400.0, -3600.0, -60.0, 60.0, 3600.0, 86_400.0])


class Weather(RuleBasedStateMachine):
    @initialize(tells=st.booleans())
    def begin(self, tells: bool) -> None:
        self.world = PowerSimulation(tells)

    @rule(seconds=GAPS)
    def time_passes(self, seconds: float) -> None:
        self.world.live(seconds)

    @rule(seconds=st.sampled_from([30.0, 300.0, 1200.0]), working=st.booleans())
    def all_goes_well(self, seconds: float, working: bool) -> None:
        self.world.run(seconds, working=working)

    @rule()
    def a_host_is_at_work(self) -> None:
        """Start from a host that runs a job, where a wrong stop would do harm."""
        self.world.broker_up, self.world.machine.broken, self.world.runner.crashed = True, False, False
        self.world.queue += 1
        self.world.run(200.0, working=False)
        self.world.claim()

    @rule(seconds=st.sampled_from([10.0, 20.0, 100.0]), want=st.sampled_from(["on", "off"]), landing=st.booleans())
    def the_owner_wishes_and_waits(self, seconds: float, want: str, landing: bool) -> None:
        self.the_owner_wishes(want)
        self.world.run(seconds, working=False, landing=landing)

    @rule(seconds=st.sampled_from([10.0, 30.0, 100.0]))
    def calls_hang(self, seconds: float) -> None:
        self.world.run(seconds, landing=False)

    @rule()
    def the_runner_goes_deaf_or_hears(self) -> None:
        self.world.runner.deaf = not self.world.runner.deaf

    @rule(seconds=GAPS)
    def the_broker_is_away(self, seconds: float) -> None:
        """All heartbeats expire; the edges tick before the next one arrives."""
        self.world.broker_up = False
        self.world.live(seconds)
        self.world.broker_up = True
        for edge in self.world.edges:
            edge.connected_s = 0.0
            self.world.turn(edge)

    @rule(edge=EDGES, seconds=GAPS)
    def an_edge_writes_late(self, edge: int, seconds: float) -> None:
        """Write a decision whose facts are outdated."""
        self.world.look(self.world.edges[edge])
        self.world.live(seconds)
        self.world.claim()
        self.world.write(self.world.edges[edge])

    @rule()
    def somebody_logs_in_or_out(self) -> None:
        self.world.runner.used = self.world.runner.up and not self.world.runner.used

    @rule(reserved=st.booleans(), released=st.booleans(), ruled=st.booleans())
    def the_pools_need_it_or_not(self, reserved: bool, released: bool, ruled: bool) -> None:
        """Let `min` of a pool keep the host, or the other hosts suffice for longer than its cool-down."""
        self.world.is_reserved, self.world.is_released = reserved and ruled, released
        self.world.has_pool_rule = ruled

    @rule()
    def a_job_comes(self) -> None:
        self.world.queue += 1

    @rule()
    def a_job_is_cancelled(self) -> None:
        self.world.queue = max(0, self.world.queue - 1)

    @rule()
    def the_runner_claims(self) -> None:
        self.world.claim()

    @rule()
    def a_job_ends(self) -> None:
        self.world.finish()

    @rule(edge=EDGES)
    def an_edge_looks(self, edge: int) -> None:
        self.world.look(self.world.edges[edge])

    @rule(edge=EDGES)
    def an_edge_writes(self, edge: int) -> None:
        self.world.write(self.world.edges[edge])

    @precondition(lambda self: self.world.flights)
    @rule(outcome=st.sampled_from(PowerCallOutcome), effect=st.booleans())
    def a_call_lands(self, outcome: PowerCallOutcome, effect: bool) -> None:
        self.world.land(self.world.flights[0], outcome, effect=effect)

    @rule(edge=EDGES)
    def an_edge_restarts(self, edge: int) -> None:
        self.world.leave(self.world.edges[edge])
        self.world.edges[edge].restart()

    @rule(edge=EDGES)
    def an_edge_is_suspended_or_wakes(self, edge: int) -> None:
        self.world.leave(self.world.edges[edge])
        one = self.world.edges[edge]
        one.suspended, one.connected_s = not one.suspended, 0.0

    @rule(edge=EDGES, seconds=JUMPS)
    def a_clock_jumps(self, edge: int, seconds: float) -> None:
        self.world.edges[edge].jumped += timedelta(seconds=seconds)
        self.world.edges[edge].connected_s = 0.0

    @rule()
    def the_broker_goes_or_comes(self) -> None:
        self.world.broker_up = not self.world.broker_up
        for edge in self.world.edges:
            edge.connected_s = 0.0

    @rule()
    def the_runner_crashes_or_comes_back(self) -> None:
        runner = self.world.runner
        runner.crashed = not runner.crashed
        if runner.crashed:
            runner.up, runner.draining, runner.work = False, False, 0

    @rule()
    def somebody_presses_the_button(self) -> None:
        machine = self.world.machine
        (machine.start if machine.power is ReportedPower.OFF else machine.stop)(self.world.now)

    @rule(word=st.sampled_from([None, *ReportedPower]))
    def the_switch_lies(self, word: ReportedPower | None) -> None:
        self.world.lie = word

    @rule(broken=st.booleans())
    def the_machine_breaks(self, broken: bool) -> None:
        self.world.machine.broken = broken

    @rule(want=st.sampled_from(["on", "off", None]))
    def the_owner_wishes(self, want: str | None) -> None:
        if self.world.broker_up:
            self.world._store(
                state_machine.with_override(self.world.record, None if want is None else PowerOverride(want))
            )

    @invariant()
    def never_two_calls_are_on_their_way(self) -> None:
        assert len(self.world.flights) <= 1
        assert not self.world.crowded

    @invariant()
    def never_a_stop_over_work(self) -> None:
        assert not any(over_work for _, over_work in self.world.stops)

    @invariant()
    def every_change_has_its_ground(self) -> None:
        for change in self.world.take_written():
            self._grounded(change)
            self._no_flapping(change)

    def _grounded(self, change: RecordWrite) -> None:
        """Check that ONLINE needs a heartbeat, OFF a report or absence, and a stop an empty host."""
        before, after, facts, _ = change
        if after.call != before.call and after.call is not None and after.call.verb is PowerVerb.STOP:
            assert not facts.active_jobs
            assert facts.heartbeat is None or (facts.heartbeat.draining and not facts.heartbeat.unfinished_jobs)
        if after.state is before.state:
            return
        assert after.why
        if after.state is PowerState.ONLINE:
            assert facts.heartbeat is not None
        if after.state is PowerState.OFF:
            assert facts.heartbeat is None
            assert facts.reported_power is ReportedPower.OFF if facts.can_report_state else facts.absence_counts

    def _no_flapping(self, change: RecordWrite) -> None:
        """Check that a host stays on for `min_on` and for the `min` of its pools, unless its owner overrides it."""
        before, after, facts, now = change
        if after.state is before.state:
            return
        if after.state is PowerState.ONLINE:
            self.came = now
        if after.why in {"nothing to do", "its pools need fewer hosts"}:
            assert now - self.came >= RULES.min_on
            assert not facts.is_reserved
        if after.why == "its pools need fewer hosts":
            assert facts.is_released

    def teardown(self) -> None:
        """Without failures, all waiting jobs are done, and the host powers off."""
        if not hasattr(self, "world"):
            return
        for _ in range(2):  # a fault that occurs meanwhile is acknowledged the second time
            self.world.heal()
            self.world.run(1.5 * 3600.0)
        assert self.world.queue == 0
        assert self.world.record.state is PowerState.OFF, self.world.record
        assert self.world.machine.power is ReportedPower.OFF


Weather.TestCase.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
test_all_weathers = Weather.TestCase
