"""A property test of pools, with three hosts and two edges.

Bursts and ebb come, hosts break, the operator overrides, and edges are cut off from the broker.

The fleet is that of `python -m bench fleet`: machines, runners and jobs are simulated, every decision is the real one.
"""

from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from bench.fleet_simulation import POOL, FleetSimulation, SimulatedHost, SimulatedJob, StoredRow
from edge.power import state_machine
from schemas.host_config import CommandHostConfig, PoolConfig
from schemas.power import PowerOverride, PowerState, ReportedPower

HOSTS = 3
SETTLE_S = 60.0  # for a boot, and the looks of the edges
SURPLUS_DRAIN = "its pools need fewer hosts"
RULES = CommandHostConfig(on=("on",), off=("off",), state=("state",), timezone="UTC", min_on=120.0, boot_timeout=300.0)


class Fleet(RuleBasedStateMachine):
    @initialize(
        low=st.integers(0, 2),
        spare=st.none() | st.integers(0, 2),
        target_s=st.sampled_from([1.0, 60.0, 600.0]),
        cool_down_s=st.sampled_from([0.0, 60.0, 600.0]),
        slots=st.integers(1, 3),
        idle_after=st.sampled_from([120.0, 2400.0]),  # the longer one leaves superfluous hosts to the pool's rule
        is_calm=st.booleans(),
    )
    def begin(
        self,
        low: int,
        spare: int | None,
        target_s: float,
        cool_down_s: float,
        slots: int,
        idle_after: float,
        is_calm: bool,
    ) -> None:
        most = None if spare is None else max(1, low + spare)
        self.pool = PoolConfig(min=low, max=most, target_wait_s=target_s, cool_down_s=cool_down_s)
        hosts = [
            SimulatedHost(
                f"gpu-{number}", replace(RULES, wake_priority=number, idle_after=idle_after), slots, boot_s=30.0
            )
            for number in range(HOSTS)
        ]
        self.fleet = FleetSimulation(hosts, [], {POOL: self.pool}, edges=2)
        self.jobs: list[SimulatedJob] = []
        self.is_calm = is_calm
        self.slots = slots
        self.states = self._states()
        self.fully_needed_s = 0.0  # when all hosts that were online were last needed
        self.one_suffices_since = 0.0  # since when one host has sufficed, for the same edges

    @rule(
        number=st.sampled_from([1, 3, 60]),
        run_s=st.sampled_from([1.0, 20.0, 60.0]),
        seconds=st.sampled_from([5.0, 100.0, 400.0]),
    )
    def jobs_come(self, number: int, run_s: float, seconds: float) -> None:
        made = [SimulatedJob(self.fleet.now, run_s) for _ in range(number)]
        self.jobs += made
        self.fleet.queue.extend(made)
        self.time_passes(seconds)

    @rule(seconds=st.sampled_from([5.0, 30.0, 200.0, 1500.0]))
    def time_passes(self, seconds: float) -> None:
        self.fleet.run(self.fleet.now + seconds, each_step=self.check_step)

    @rule(run_s=st.sampled_from([600.0, 2400.0]), seconds=st.sampled_from([5.0, 200.0, 1500.0]))
    def a_long_job_comes(self, run_s: float, seconds: float) -> None:
        self.jobs_come(1, run_s, seconds)

    @precondition(lambda self: not self.is_calm)
    @rule(number=st.integers(0, HOSTS - 1))
    def a_host_breaks_or_is_repaired(self, number: int) -> None:
        host = self.fleet.hosts[number]
        host.never_boots = not host.never_boots

    @precondition(lambda self: not self.is_calm)
    @rule(number=st.integers(0, HOSTS - 1), want=st.sampled_from(["on", "off", None]))
    def the_owner_wishes(self, number: int, want: str | None) -> None:
        self._override(f"gpu-{number}", want)

    @rule(number=st.integers(0, 1))
    def an_edge_is_cut_off_or_comes_back(self, number: int) -> None:
        edge = self.fleet.edges[number]
        edge.connect(is_connected=not edge.is_connected or not self.fleet.edges[1 - number].is_connected)
        self.one_suffices_since = self.fleet.now

    def _override(self, host: str, want: str | None) -> None:
        row = self.fleet.rows[host]
        override = None if want is None else PowerOverride(want)
        self.fleet.rows[host] = StoredRow(row.revision + 1, state_machine.with_override(row.record, override))

    def check_step(self) -> None:
        """Check what holds after every look."""
        for host in self.fleet.hosts:
            assert not (host.runs and host.power is not ReportedPower.ON), "a stop over running jobs"
        before, self.states = self.states, self._states()
        if not self.is_calm:
            return
        if self.pool.max is not None:
            powered = [host for host in self.fleet.hosts if host.power is not ReportedPower.OFF]
            assert len(powered) <= self.pool.max, "more hosts than `max`"
        self._check_cool_down(before)

    def _states(self) -> dict[str, PowerState]:
        return {host: row.record.state for host, row in self.fleet.rows.items()}

    def _check_cool_down(self, before: Mapping[str, PowerState]) -> None:
        """Check the hosts that are drained because the others suffice, by the states that the edges have seen."""
        now, rows = self.fleet.now, self.fleet.rows
        online = [host for host, state in before.items() if state is PowerState.ONLINE]
        drained = [
            host
            for host in online
            if self.states[host] is PowerState.DRAINING and rows[host].record.why == SURPLUS_DRAIN
        ]
        is_woken = any(host.starts[-1:] == [now] for host in self.fleet.hosts)
        if is_woken or len(self.fleet.queue) > self._startable_jobs(len(online) - 1):
            self.fully_needed_s = now
        assert not drained or now > self.fully_needed_s + self.pool.cool_down_s, "drained within the cool-down"
        least = max(1, self.pool.min)
        assert not drained or len(online) - len(drained) >= least, "the last hosts were drained"
        running = sum(len(host.runs) for host in self.fleet.hosts)
        if is_woken or self.fleet.queue or running > int(0.9 * self.slots):
            self.one_suffices_since = now
        # The average load takes up to 2.4 cool-downs to fall to what one host may bear; then the cool-down begins.
        is_over = now > self.one_suffices_since + 3.5 * self.pool.cool_down_s + RULES.min_on + SETTLE_S
        cycled = {host.name for host in self.fleet.hosts if host.stops and now < host.stops[-1] + 3600.0 + SETTLE_S}
        stay = [host for host in online if host not in cycled]
        assert not is_over or len(stay) <= least, "superfluous hosts stay on after the cool-down"

    def _startable_jobs(self, hosts: int) -> int:
        """Return how many jobs so many free hosts start within `target_wait_s`."""
        jobs = self.fleet.observe().pools.get(POOL)
        return hosts * self.slots * (int(self.pool.target_wait_s / jobs.run_s) + 1) if jobs else 0

    @invariant()
    def no_host_is_switched_more_than_once_an_hour(self) -> None:
        if hasattr(self, "fleet") and self.is_calm:
            assert self.fleet.most_cycles_an_hour() <= 1

    @invariant()
    def no_job_is_lost(self) -> None:
        if hasattr(self, "fleet"):
            running = [job for host in self.fleet.hosts for job in host.runs]
            waiting = list(self.fleet.queue)
            ended = [job for job in self.jobs if job.ended_s is not None]
            assert len(running) + len(waiting) + len(ended) == len(self.jobs)

    def teardown(self) -> None:
        """Without disturbances, all jobs end, and so many hosts remain on as `min` asks for."""
        if not hasattr(self, "fleet"):
            return
        wanted = sorted([PowerState.ONLINE] * self.pool.min + [PowerState.OFF] * (HOSTS - self.pool.min))
        for _ in range(3):  # a fault that occurs meanwhile is acknowledged the next time
            for host in self.fleet.hosts:
                host.never_boots = False
                self._override(host.name, None)
            for edge in self.fleet.edges:
                edge.connect(is_connected=True)
            self.fleet.run(self.fleet.now + 1.5 * 3600.0)
            if sorted(row.record.state for row in self.fleet.rows.values()) == wanted:
                break
        assert not self.fleet.queue
        assert all(job.ended_s is not None for job in self.jobs)
        assert sorted(row.record.state for row in self.fleet.rows.values()) == wanted


Fleet.TestCase.settings = settings(
    max_examples=12, stateful_step_count=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
test_all_fleets = Fleet.TestCase


@pytest.mark.parametrize(("cool_down_s", "slots"), [(0.0, 3), (60.0, 1), (600.0, 1), (600.0, 3)])
def test_superfluous_hosts_stay_for_the_cool_down_and_no_longer(cool_down_s: float, slots: int) -> None:
    """The second edge is cut off while hosts are superfluous, and misses that they are needed again meanwhile."""
    world = Fleet()
    world.begin(low=0, spare=None, target_s=60.0, cool_down_s=cool_down_s, slots=slots, idle_after=2400.0, is_calm=True)
    world.jobs_come(60, 20.0, 900.0)
    world.an_edge_is_cut_off_or_comes_back(1)
    world.jobs_come(60, 20.0, 600.0)
    world.an_edge_is_cut_off_or_comes_back(1)
    world.a_long_job_comes(2400.0, 1500.0)
    reasons = [change.why for row in world.fleet.rows.values() for change in row.record.history]
    assert SURPLUS_DRAIN in reasons
    world.teardown()
