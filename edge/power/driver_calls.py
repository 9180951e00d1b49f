"""Calls to power drivers: with a timeout, and with every outcome as a value.

`DriverPoller` asks drivers for the power state while it matters: not for an online host with heartbeats, and not for a
host that is off. One call asks for all hosts of a cluster. `PowerCallExecutor` makes each call that this edge has to
make once, and writes its result.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, cast

import anyio
import structlog
from anyio import sleep
from anyio.abc import TaskGroup
from msgspec import Struct

from bus.compare_and_set import update_row
from bus.interface import BusError, Table, TableRow
from bus.notifier import Notifier
from edge.core.clock import Clock
from edge.core.messages import DEFAULT_WAKE_S
from edge.power import state_machine
from edge.power.conditions import HostFacts
from edge.power.host_facts import state_key
from edge.power.observation import FleetObservation, FleetObserver
from schemas.host_config import AnyHostConfig, PoolConfig
from schemas.power import (
    ClusterPowerDriver,
    NoCapacity,
    PowerCall,
    PowerCallFailed,
    PowerCallOutcome,
    PowerCallResult,
    PowerDriver,
    PowerRecord,
    PowerState,
    PowerVerb,
    ReportedPower,
)
from schemas.problems import ProblemError

POLL_INTERVAL_S = 5.0
TICK_INTERVAL_S = 3.0
RECORD_RETRY_DELAY_S = 1.0
WAKE_LEAD_FACTOR = 2.0  # a scheduled job wakes its host this many usual wake times ahead

CurrentRecord = Callable[[str], tuple[PowerRecord, bool] | None]

_log = structlog.get_logger()


async def call_driver(driver: PowerDriver, verb: PowerVerb, call_id: str, timeout_s: float) -> PowerCallResult:
    """Make a call. A call that exceeds `timeout_s` counts as failed, although it may still take effect."""
    call = {PowerVerb.START: driver.start, PowerVerb.STOP: driver.stop}[verb]
    try:
        with anyio.fail_after(timeout_s):
            await call(call_id)
    except NoCapacity as error:
        return PowerCallResult(PowerCallOutcome.NO_CAPACITY, str(error))
    except PowerCallFailed as error:
        return PowerCallResult(PowerCallOutcome.FAILED, str(error))
    except TimeoutError:
        return PowerCallResult(PowerCallOutcome.FAILED, f"the power driver did not answer in {timeout_s:g} s")
    except Exception as error:  # a program or a cloud may fail in any way
        _log.exception("power_driver_failed", verb=verb)
        return PowerCallResult(PowerCallOutcome.FAILED, f"{type(error).__name__}: {error}")
    return PowerCallResult(PowerCallOutcome.DONE)


class StateReport(NamedTuple):
    """The power state that a driver reports. `why`: why it is UNKNOWN, if the driver failed."""

    power: ReportedPower
    why: str = ""


async def query_driver(driver: PowerDriver, timeout_s: float) -> StateReport:
    """Return the power state that the driver reports; UNKNOWN if it fails or does not answer in time."""

    async def query() -> Mapping[str, ReportedPower]:
        return {"": await driver.state()}

    return (await _query([""], query, timeout_s))[""]


async def query_cluster(
    driver: ClusterPowerDriver, hosts: Collection[str], timeout_s: float
) -> Mapping[str, StateReport]:
    """Return the power states of hosts of the driver's cluster, by one call. If it fails, all of them are UNKNOWN."""
    return await _query(hosts, partial(driver.states, hosts), timeout_s)


async def _query(
    hosts: Collection[str], query: Callable[[], Awaitable[Mapping[str, ReportedPower]]], timeout_s: float
) -> Mapping[str, StateReport]:
    try:
        with anyio.fail_after(timeout_s):
            states = await query()
        return {host: StateReport(states.get(host, ReportedPower.UNKNOWN)) for host in hosts}
    except PowerCallFailed as error:
        why = str(error)
    except TimeoutError:
        why = f"the power driver did not answer in {timeout_s:g} s"
    except Exception as error:
        _log.exception("power_driver_failed", verb="state")
        why = f"{type(error).__name__}: {error}"
    return dict.fromkeys(hosts, StateReport(ReportedPower.UNKNOWN, why))


class DriverPoller:
    """Polls the power drivers of the declared hosts, and the hosts of a cluster together.

    `current_record`: returns a host's record and whether it has a heartbeat. `on_report`: called after each report.
    A report counts only for the period in which it was requested: "off" from before a start call proves nothing.
    """

    def __init__(
        self,
        declared: Mapping[str, AnyHostConfig],
        drivers: Mapping[str, PowerDriver],
        current_record: CurrentRecord,
        on_report: Callable[[], None],
        interval_s: float = POLL_INTERVAL_S,
    ) -> None:
        self._declared = declared
        self._drivers = drivers
        self._current_record = current_record
        self._on_report = on_report
        self._interval_s = interval_s
        self._reports: dict[str, tuple[object, StateReport]] = {}
        groups: defaultdict[Hashable, list[str]] = defaultdict(list)
        for host, driver in drivers.items():
            if driver.can_report_state:
                groups[_cluster_of(driver) or (host,)].append(host)
        self._groups = {host: tuple(hosts) for hosts in groups.values() for host in hosts}
        self._poll_requests = {hosts: Notifier() for hosts in self._groups.values()}

    def start(self, tasks: TaskGroup) -> None:
        """Start one task for each cluster and each other driver, so that a slow one does not delay the others."""
        for hosts in self._poll_requests:
            tasks.start_soon(self._poll_forever, hosts)

    def last_reported(self, host: str, record: PowerRecord) -> StateReport:
        """Return the last report for the current state of the host; UNKNOWN if it has not reported."""
        key, report = self._reports.get(host, (None, StateReport(ReportedPower.UNKNOWN)))
        return report if key == state_key(record) else StateReport(ReportedPower.UNKNOWN)

    def poll_now(self, host: str) -> None:
        """Poll now, because the host has changed."""
        if host in self._groups:
            self._poll_requests[self._groups[host]].notify()

    async def _poll_forever(self, hosts: tuple[str, ...]) -> None:
        while True:
            requested = self._poll_requests[hosts].next_notification()
            await self._poll(hosts)
            with anyio.move_on_after(self._interval_s):
                await requested.wait()

    async def poll(self, host: str) -> None:
        """Poll once for the host, and for those that are asked for together with it."""
        if host in self._groups:
            await self._poll(self._groups[host])

    async def _poll(self, hosts: tuple[str, ...]) -> None:
        """Poll once for those of `hosts` whose state needs a report."""
        asked = {host: record for host in hosts if (record := self._record_to_report(host)) is not None}
        if not asked:
            return
        driver, timeout_s = self._drivers[hosts[0]], max(self._declared[host].timeout for host in asked)
        if isinstance(driver, ClusterPowerDriver) and driver.cluster is not None:
            reports = await query_cluster(driver, tuple(asked), timeout_s)
        else:
            reports = {hosts[0]: await query_driver(driver, timeout_s)}
        self._log_failures(reports)
        for host, record in asked.items():
            self._reports[host] = state_key(record), reports[host]
        self._on_report()

    def _record_to_report(self, host: str) -> PowerRecord | None:
        """Return the host's record; None if its state needs no report."""
        current = self._current_record(host)
        if current is None:
            return None
        record, has_heartbeat = current
        if record.state is PowerState.OFF or (has_heartbeat and record.state is PowerState.ONLINE):
            self._reports.pop(host, None)
            return None
        return record

    def _log_failures(self, reports: Mapping[str, StateReport]) -> None:
        """Log each reason once, with the hosts that did not have it at the last poll."""
        new: defaultdict[str, list[str]] = defaultdict(list)
        for host, report in reports.items():
            if report.why and (host not in self._reports or self._reports[host][1].why != report.why):
                new[report.why].append(host)
        for why, hosts in new.items():
            _log.warning("power_state_query_failed", hosts=hosts, error=why)


def _cluster_of(driver: PowerDriver) -> Hashable | None:
    return driver.cluster if isinstance(driver, ClusterPowerDriver) else None


class PowerDependencies(Struct, frozen=True, kw_only=True):
    """Services, clocks and randomness of the controller. `drivers` has one driver for each host in `declared`.

    `pools`: the rules of pools that have one. `monotonic`: in seconds. `new_id`: a new token. `random`: a number in
    [0, 1).
    """

    table: Table[PowerRecord]
    fleet: FleetObserver
    declared: Mapping[str, AnyHostConfig]
    drivers: Mapping[str, PowerDriver]
    now: Clock
    monotonic: Callable[[], float]
    new_id: Callable[[], str]
    random: Callable[[], float]
    pools: Mapping[str, PoolConfig] = MappingProxyType({})
    tick_interval_s: float = TICK_INTERVAL_S
    poll_interval_s: float = POLL_INTERVAL_S


class DuePowerCall(NamedTuple):
    """A power call that this edge has to make."""

    host: str
    call: PowerCall


async def update_record(
    table: Table[PowerRecord], host: str, now: Clock, change: Callable[[PowerRecord], PowerRecord]
) -> TableRow[PowerRecord]:
    """Change the host's record, and create it first if it does not exist; return the row. Raises BusError."""
    updated = await update_row(table, host, lambda record: change(record or state_machine.initial_record(now())))
    return cast("TableRow[PowerRecord]", updated.row)  # `change` returns a record, so there is a row


class PowerCallExecutor:
    """Makes each power call once, and records its result. `stop_facts`: the facts by which a stop is judged again."""

    def __init__(
        self, dependencies: PowerDependencies, stop_facts: Callable[[str, FleetObservation], HostFacts]
    ) -> None:
        self._stop_facts = stop_facts
        self._table, self._fleet = dependencies.table, dependencies.fleet
        self._declared, self._drivers = dependencies.declared, dependencies.drivers
        self._random = dependencies.random

    async def execute(self, due: DuePowerCall) -> None:
        """Make the call and write its result. If the broker is unreachable, leave the call to another edge."""
        try:
            result = await self._call_driver(due)
        except (BusError, ProblemError) as error:
            _log.warning("power_call_skipped", host=due.host, error=str(error))
            return
        if result is None:
            return
        _log.info(
            "power_call_finished", host=due.host, verb=due.call.verb, outcome=result.outcome, error=result.why or None
        )
        while not await self._record_result(due, result):  # noqa: ASYNC110 - no event tells that the broker is back
            await sleep(RECORD_RETRY_DELAY_S)

    async def _call_driver(self, due: DuePowerCall) -> PowerCallResult | None:
        """Make the call; return None if the record has another call now."""
        row = await self._table.get(due.host)
        if row is None or row.value.call != due.call:
            return None
        if due.call.verb is PowerVerb.STOP and (why := await self._stop_veto(due.host, row.value)):
            return PowerCallResult(PowerCallOutcome.FAILED, why)
        return await call_driver(self._drivers[due.host], due.call.verb, due.call.id, self._declared[due.host].timeout)

    async def _stop_veto(self, host: str, record: PowerRecord) -> str | None:
        fleet = await self._fleet.observe(WAKE_LEAD_FACTOR * DEFAULT_WAKE_S, include_queue=True)
        return state_machine.stop_veto(record, self._stop_facts(host, fleet), self._declared[host])

    async def _record_result(self, due: DuePowerCall, result: PowerCallResult) -> bool:
        """Return whether the result is written, or the record no longer waits for it."""
        try:
            await update_row(
                self._table,
                due.host,
                lambda record: record and state_machine.with_result(record, due.call.id, result, self._random()),
            )
        except BusError:
            return False
        return True
