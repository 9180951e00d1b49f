"""A call of a switch, bounded in time, with every way it can end as a value."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import anyio
import structlog
from anyio import sleep
from anyio.abc import TaskGroup
from msgspec import Struct

from bus.interface import BusError, RevisionConflict, Table, TableRow
from edge.core.clock import Clock
from edge.power import state_machine
from edge.power.drivers.port import NoCapacity, PowerCallFailed, PowerDriver
from edge.power.observation import FleetObserver, current_facts, state_key
from schemas.host_config import AnyHostConfig
from schemas.power import (
    PowerCall,
    PowerCallOutcome,
    PowerCallResult,
    PowerRecord,
    PowerState,
    PowerVerb,
    ReportedPower,
)
from schemas.problems import ProblemError

_log = structlog.get_logger()


async def call_driver(driver: PowerDriver, verb: PowerVerb, call_id: str, timeout_s: float) -> PowerCallResult:
    """Have it done within `timeout_s`. A call that takes longer has failed, though it may still have its effect."""
    press = {PowerVerb.START: driver.start, PowerVerb.STOP: driver.stop}[verb]
    try:
        with anyio.fail_after(timeout_s):
            await press(call_id)
    except NoCapacity as error:
        return PowerCallResult(PowerCallOutcome.NO_CAPACITY, str(error))
    except PowerCallFailed as error:
        return PowerCallResult(PowerCallOutcome.FAILED, str(error))
    except TimeoutError:
        return PowerCallResult(PowerCallOutcome.FAILED, f"the switch did not answer in {timeout_s:g} s")
    except Exception as error:  # the border to programs and clouds of others: see edge.core.error_handling
        _log.exception("switch_broke", verb=verb)
        return PowerCallResult(PowerCallOutcome.FAILED, f"{type(error).__name__}: {error}")
    return PowerCallResult(PowerCallOutcome.DONE)


async def query_driver(driver: PowerDriver, timeout_s: float) -> ReportedPower:
    """What the switch says, UNKNOWN when it says nothing in time."""
    try:
        with anyio.fail_after(timeout_s):
            return await driver.state()
    except (PowerCallFailed, TimeoutError):
        return ReportedPower.UNKNOWN
    except Exception:
        _log.exception("switch_broke", verb="state")
        return ReportedPower.UNKNOWN


# MERGED edge/power/polls.py: What the switches say, asked while it matters: not of a host that beats, and not of one
# that is known to be off.


POLL_INTERVAL_S = 5.0

CurrentRecord = Callable[[str], tuple[PowerRecord, bool] | None]


class DriverPoller:
    """`current` gives a host's record and whether its runner beats; `told` is called when a switch has said something.

    A word counts only for the state in which it was asked: what was off before the start is no proof of anything.
    """

    def __init__(
        self,
        declared: Mapping[str, AnyHostConfig],
        drivers: Mapping[str, PowerDriver],
        current: CurrentRecord,
        told: Callable[[], None],
        period_s: float = POLL_INTERVAL_S,
    ) -> None:
        self._declared = declared
        self._drivers = drivers
        self._current_record = current
        self._on_report = told
        self._period_s = period_s
        self._reports: dict[str, tuple[object, ReportedPower]] = {}
        self._poll_requests = {host: anyio.Event() for host in drivers}

    def start(self, tasks: TaskGroup) -> None:
        """One task a host that can tell, so that a slow switch delays no other."""
        for host, driver in self._drivers.items():
            if driver.can_report_state:
                tasks.start_soon(self._poll_forever, host)

    def last_reported(self, host: str, record: PowerRecord) -> ReportedPower:
        """What the switch last said of the host as it stands, UNKNOWN when it has not."""
        key, word = self._reports.get(host, (None, ReportedPower.UNKNOWN))
        return word if key == state_key(record) else ReportedPower.UNKNOWN

    def poll_now(self, host: str) -> None:
        """The host has changed: ask now."""
        self._poll_requests[host].set()

    async def _poll_forever(self, host: str) -> None:
        while True:
            await self.poll(host)
            with anyio.move_on_after(self._period_s):
                await self._poll_requests[host].wait()
            self._poll_requests[host] = anyio.Event()

    async def poll(self, host: str) -> None:
        """Ask once, if it matters."""
        current = self._current_record(host)
        if current is None or not self._drivers[host].can_report_state:
            return
        record, beats = current
        if record.state is PowerState.OFF or (beats and record.state is PowerState.ONLINE):
            self._reports.pop(host, None)
            return
        word = await query_driver(self._drivers[host], self._declared[host].timeout)
        self._reports[host] = state_key(record), word
        self._on_report()


# MERGED edge/power/caller.py: Makes the calls that this edge has won, once each, and writes their answers down.


TICK_INTERVAL_S = 3.0
RECORD_RETRY_DELAY_S = 1.0
DEFAULT_WAKE_S = 120.0
WAKE_LEAD_FACTOR = 2.0  # work that must start by a time calls its host so many usual wakes ahead


class PowerDependencies(Struct, frozen=True, kw_only=True):
    """Time and chance. `running` in seconds, never set back; `fresh_id`: a new token; `dice`: a number in [0, 1)."""

    now: Clock
    monotonic: Callable[[], float]
    new_id: Callable[[], str]
    random: Callable[[], float]
    tick_interval_s: float = TICK_INTERVAL_S
    poll_interval_s: float = POLL_INTERVAL_S


class DuePowerCall(NamedTuple):
    """A call that this edge has to make."""

    host: str
    call: PowerCall


async def get_or_create_row(table: Table[PowerRecord], host: str, now: Clock) -> TableRow[PowerRecord]:
    """The host's row; the first edge that looks makes it. Raises BusError."""
    while (row := await table.get(host)) is None:
        record = state_machine.initial_record(now())
        try:
            return TableRow(await table.create(host, record), record)
        except RevisionConflict:
            continue
    return row


class PowerCallExecutor:
    """Presses the buttons. `drivers` has one for each declared host."""

    def __init__(
        self,
        table: Table[PowerRecord],
        sight: FleetObserver,
        declared: Mapping[str, AnyHostConfig],
        drivers: Mapping[str, PowerDriver],
        means: PowerDependencies,
    ) -> None:
        self._table = table
        self._fleet = sight
        self._declared = declared
        self._drivers = drivers
        self._dependencies = means

    async def execute(self, due: DuePowerCall) -> None:
        """Make the call, and write its answer down. Without the broker it is not made: another edge may have it."""
        try:
            answer = await self._call_driver(due)
        except (BusError, ProblemError) as error:
            _log.warning("power_call_left", host=due.host, error=str(error))
            return
        if answer is None:
            return
        _log.info("power_call", host=due.host, verb=due.call.verb, outcome=answer.outcome, why=answer.why)
        while not await self._record_result(due, answer):  # noqa: ASYNC110 - the broker's return is no event of ours
            await sleep(RECORD_RETRY_DELAY_S)

    async def _call_driver(self, due: DuePowerCall) -> PowerCallResult | None:
        """None: the call is not ours any more."""
        row = await get_or_create_row(self._table, due.host, self._dependencies.now)
        if row.value.call != due.call:
            return None
        if due.call.verb is PowerVerb.STOP and (why := await self._stop_veto(due.host, row.value)):
            return PowerCallResult(PowerCallOutcome.FAILED, why)
        return await call_driver(self._drivers[due.host], due.call.verb, due.call.id, self._declared[due.host].timeout)

    async def _stop_veto(self, host: str, record: PowerRecord) -> str | None:
        outlook = await self._fleet.observe(WAKE_LEAD_FACTOR * DEFAULT_WAKE_S, closely=True)
        return state_machine.stop_veto(record, current_facts(host, outlook), self._declared[host])

    async def _record_result(self, due: DuePowerCall, answer: PowerCallResult) -> bool:
        """Whether the answer is written, or nobody waits for it any more."""
        try:
            row = await get_or_create_row(self._table, due.host, self._dependencies.now)
            record = state_machine.with_result(row.value, due.call.id, answer, self._dependencies.random())
            if record is not None:
                await self._table.update(due.host, record, row.revision)
        except BusError:
            return False
        return True
