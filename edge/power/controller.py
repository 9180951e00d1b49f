"""Applies the law: looks, decides, writes by compare-and-set, and only who wrote makes the call.

Any number of edges may do so at once: POWER is where they meet. A call whose edge died is made again by another one.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Literal

import anyio
import structlog
from anyio.abc import TaskGroup

from bus.interface import BusError, RevisionConflict, Table, TableRow
from edge.hosts.registry import HostNotice, WakeForecast
from edge.power import state_machine
from edge.power import views as show
from edge.power.conditions import Stopwatch
from edge.power.driver_calls import (
    DEFAULT_WAKE_S,
    WAKE_LEAD_FACTOR,
    DriverPoller,
    DuePowerCall,
    PowerCallExecutor,
    PowerDependencies,
    get_or_create_row,
)
from edge.power.drivers.port import PowerDriver
from edge.power.observation import DriverReport, FleetObservation, FleetObserver, HostObserver
from schemas.host import HostView
from schemas.host_config import AnyHostConfig
from schemas.power import PowerOverride, PowerRecord, PowerState
from schemas.problems import ProblemError
from schemas.status import WaitReason

MIN_TICK_GAP_S = 0.05  # from one look to the next at least, however much happens

_log = structlog.get_logger()


class PowerController:
    """The declared hosts of one edge. `drivers` has one for each."""

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
        self._call_executor = PowerCallExecutor(table, sight, declared, drivers, means)
        self._host_observer = HostObserver(declared, Stopwatch(means.monotonic))
        self._poller = DriverPoller(declared, drivers, self._current_record, self.request_tick, means.poll_interval_s)
        self._rows: dict[str, TableRow[PowerRecord]] = {}
        self._online_hosts: frozenset[str] = frozenset()
        self._unconfirmed_calls: dict[str, str] = {}  # host to the id of a call that may or may not have been written
        self._subscribers: set[Callable[[HostNotice], object]] = set()
        self._tick_requested = anyio.Event()

    # ── what others ask ──────────────────────────────────────────────────────────────────────────────────────────

    def record(self, host: str) -> PowerRecord | None:
        """The record as last read, None for a host that is not declared, or not known yet."""
        row = self._rows.get(host)
        return row.value if row else None

    def records(self) -> dict[str, PowerRecord]:
        """The records of all declared hosts, as last read."""
        return {host: row.value for host, row in self._rows.items()}

    def wait_reason(self, host: str) -> WaitReason | None:
        """Why a job waits for this host; None while it is up, or when it is not declared."""
        record = self.record(host)
        return None if record is None else show.wait_reason(record, self._poller.last_reported(host, record))

    def wake_forecast(self, endpoint: str) -> WakeForecast | None:
        """Why work for `endpoint` waits: the declared host that is nearest to taking it. None: no declared host may."""
        hosts, at = self._fleet.hosts_offering(endpoint, self._declared), self._dependencies.now()
        known = ((host, self.record(host), self.wait_reason(host)) for host in hosts)
        return show.nearest_forecast(
            WakeForecast(why, host, show.wake_median_s(record), show.wake_left_s(record, at))
            for host, record, why in known
            if record and why
        )

    def has_driver(self, host: str) -> bool:
        """Whether the host is declared, so that it can be woken."""
        return host in self._declared

    async def is_off(self, host: str) -> bool | None:
        """Whether the host's switch reports it off; None when it has none, or one that cannot tell."""
        record = self.record(host)
        if record is None or not self._drivers[host].can_report_state:
            return None
        return record.state is PowerState.OFF

    def views(self, seen: Iterable[HostView]) -> tuple[HostView, ...]:
        """`seen` with the power of those that are declared, and the declared hosts that never spoke."""
        by_id = {view.id: view for view in seen}
        at = self._dependencies.now()
        powered = {host: show.host_view(host, by_id.get(host), row.value, at) for host, row in self._rows.items()}
        return tuple(view for _, view in sorted((by_id | powered).items()))

    async def set_override(
        self, host: str, want: Literal["on", "off", "auto"], until: datetime | None = None
    ) -> PowerRecord:
        """Take the owner's wish down; the law acts on it at once. Raises Refused `not_found`, BusError."""
        if host not in self._declared:
            raise ProblemError("not_found", f"{host} has no switch: declare it under [hosts.{host}] at the edge")
        hold = None if want == "auto" else PowerOverride(want, until)
        while True:
            row = await get_or_create_row(self._table, host, self._dependencies.now)
            record = state_machine.with_override(row.value, hold)
            try:
                self._accept_row(host, TableRow(await self._table.update(host, record, row.revision), record))
            except RevisionConflict:
                continue
            self.request_tick()
            return record

    def subscribe(self, listener: Callable[[HostNotice], object]) -> Callable[[], None]:
        """Call `listener` with every notice; returns what ends that. It must not block."""
        self._subscribers.add(listener)
        return lambda: self._subscribers.discard(listener)

    def request_tick(self) -> None:
        """Something happened: look now."""
        self._tick_requested.set()

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Without end, from when the jobs are known."""
        self._fleet.subscribe_job_changes(self.request_tick)
        await self._fleet.ready()
        async with anyio.create_task_group() as tasks:
            self._poller.start(tasks)
            while True:
                began = anyio.current_time()
                await self._tick_and_call(tasks)
                with anyio.move_on_after(self._dependencies.tick_interval_s):
                    await self._tick_requested.wait()
                await anyio.sleep_until(began + MIN_TICK_GAP_S)  # what comes after a quiet time is looked at now
                self._tick_requested = anyio.Event()

    async def _tick_and_call(self, tasks: TaskGroup) -> None:
        try:
            for due in await self.tick():
                tasks.start_soon(self._execute_call, due)
        except (BusError, ProblemError) as error:
            _log.warning("power_put_off", error=str(error))

    async def _execute_call(self, due: DuePowerCall) -> None:
        await self._call_executor.execute(due)
        self.request_tick()

    async def tick(self) -> list[DuePowerCall]:
        """Look, and write what follows; the calls that are now this edge's to make. Raises BusError, Refused."""
        rows = {host: await get_or_create_row(self._table, host, self._dependencies.now) for host in self._declared}
        outlook = await self._observe(rows)
        self._online_hosts = frozenset(outlook.heartbeats)
        for host, row in rows.items():
            self._accept_row(host, row)
        called = self._host_observer.hosts_to_wake({host: row.value for host, row in rows.items()}, outlook)
        steps = [await self._decide(host, row, outlook, called=host in called) for host, row in rows.items()]
        return [due for due in steps if due is not None]

    async def _observe(self, rows: Mapping[str, TableRow[PowerRecord]]) -> FleetObservation:
        wakes = [show.wake_median_s(row.value) or DEFAULT_WAKE_S for row in rows.values()]
        draining = any(row.value.state is PowerState.DRAINING for row in rows.values())
        return await self._fleet.observe(WAKE_LEAD_FACTOR * max(wakes, default=DEFAULT_WAKE_S), closely=draining)

    def _accept_row(self, host: str, row: TableRow[PowerRecord]) -> None:
        """A newer row, whoever wrote it: listeners hear of every change once."""
        before, self._rows[host] = self._rows.get(host), row
        record = row.value
        if before is None or before.value.state is record.state:
            return
        self._poller.poll_now(host)
        _log.info("power", host=host, state=record.state, why=record.why)
        if (kind := show.NOTICE_KINDS.get(record.state)) is not None:
            for listener in tuple(self._subscribers):
                listener(HostNotice(kind, host, record.since, show.wake_median_s(record)))

    async def _decide(
        self, host: str, row: TableRow[PowerRecord], outlook: FleetObservation, *, called: bool
    ) -> DuePowerCall | None:
        told = DriverReport(self._drivers[host].can_report_state, self._poller.last_reported(host, row.value))
        facts = self._host_observer.observe_host(host, row.value, outlook, called=called, told=told)
        if (overdue := self._recover_unconfirmed_call(host, row.value)) is not None:
            return overdue
        call_id = self._dependencies.new_id()
        record = state_machine.advance(row.value, facts, self._declared[host], call_id)
        return None if record is None else await self._write_record(host, record, row.revision, call_id)

    async def _write_record(self, host: str, record: PowerRecord, revision: int, call_id: str) -> DuePowerCall | None:
        """Compare-and-set. An error does not keep other hosts from their turn, and the next look tells what it did."""
        self.request_tick()
        try:
            row = TableRow(await self._table.update(host, record, revision), record)
        except RevisionConflict:
            return None  # another edge was faster
        except BusError as error:
            self._unconfirmed_calls[host] = call_id
            _log.warning("power_not_written", host=host, error=str(error))
            return None
        self._accept_row(host, row)
        return DuePowerCall(host, record.call) if record.call and record.call.id == call_id else None

    def _recover_unconfirmed_call(self, host: str, record: PowerRecord) -> DuePowerCall | None:
        """The call whose writing failed, if it was written all the same: nobody else will make it."""
        unsure, call = self._unconfirmed_calls.pop(host, None), record.call
        return DuePowerCall(host, call) if call and call.id == unsure and call.result is None else None

    def _current_record(self, host: str) -> tuple[PowerRecord, bool] | None:
        record = self.record(host)
        return None if record is None else (record, host in self._online_hosts)
