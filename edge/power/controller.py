"""The power controller: observe, decide, write the record by compare-and-set, and make the call.

Several edges may do this at the same time: only the edge whose write to POWER succeeds makes the call. If it dies,
another edge makes the call again.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Literal

import anyio
import structlog
from anyio.abc import TaskGroup

from bus.interface import BusError, RevisionConflict, TableRow
from bus.notifier import Notifier
from edge.core.messages import DEFAULT_WAKE_S
from edge.hosts.registry import HostNotice, WakeForecast
from edge.power import state_machine, views
from edge.power.conditions import HostFacts, PowerCase
from edge.power.driver_calls import (
    WAKE_LEAD_FACTOR,
    DriverPoller,
    DuePowerCall,
    PowerCallExecutor,
    PowerDependencies,
    update_record,
)
from edge.power.host_facts import DriverReport, HostObserver, PlannedFleet
from edge.power.observation import FleetObservation
from edge.power.views import keep_reasons
from schemas.host import HostView, KeptOn
from schemas.job import WaitReason
from schemas.power import PowerOverride, PowerRecord, PowerState
from schemas.problems import ProblemError
from schemas.texts import Language

RecordChangeSubscriber = Callable[[str, PowerRecord, PowerRecord], None]
"""It is called with the host, and with its record before and after the change."""

MIN_TICK_GAP_S = 0.05  # between the starts of two ticks, however many changes arrive

_log = structlog.get_logger()


class PowerController:
    """Powers the hosts in `[hosts]` on and off, by the table of transitions."""

    def __init__(self, dependencies: PowerDependencies) -> None:
        self._table, self._fleet = dependencies.table, dependencies.fleet
        self._declared, self._drivers = dependencies.declared, dependencies.drivers
        self._dependencies = dependencies
        self._call_executor = PowerCallExecutor(dependencies, self._stop_facts)
        self._host_observer = HostObserver(self._declared, dependencies.pools, dependencies.monotonic)
        self._poller = DriverPoller(
            self._declared, self._drivers, self._current_record, self.request_tick, dependencies.poll_interval_s
        )
        self._rows: dict[str, TableRow[PowerRecord]] = {}
        self._facts: dict[str, HostFacts] = {}  # of the last tick
        self._online_hosts: frozenset[str] = frozenset()
        self._unconfirmed_calls: dict[str, str] = {}  # host -> id of a call whose write failed and may have been stored
        self._subscribers: set[Callable[[HostNotice], object]] = set()
        self._record_subscribers: list[RecordChangeSubscriber] = []
        self._tick_requests = Notifier()

    # ── readers for other services ───────────────────────────────────────────────────────────────────────────────

    def record(self, host: str) -> PowerRecord | None:
        """Return the record as last read; None for a host that is not declared or was not read yet."""
        row = self._rows.get(host)
        return row.value if row else None

    def records(self) -> dict[str, PowerRecord]:
        """Return the records of all declared hosts as last read."""
        return {host: row.value for host, row in self._rows.items()}

    def wait_reason(self, host: str) -> WaitReason | None:
        """Return why a job waits for this host; None while it is online, or if it is not declared."""
        record = self.record(host)
        return None if record is None else views.wait_reason(record, self._poller.last_reported(host, record).power)

    def wake_forecast(self, endpoint: str) -> WakeForecast | None:
        """Return the forecast of the declared host closest to running `endpoint`; None if none may run it."""
        hosts, at = self._fleet.hosts_offering(endpoint, self._declared), self._dependencies.now()
        known = ((host, self.record(host), self.wait_reason(host)) for host in hosts)
        return views.nearest_forecast(
            views.forecast_wake(host, record, why, at) for host, record, why in known if record and why
        )

    def has_driver(self, host: str) -> bool:
        """Return whether the host is declared, so that it can be woken."""
        return host in self._declared

    def is_off(self, host: str) -> bool | None:
        """Return whether the host is off; None if it has no power driver, or one that cannot report this."""
        record = self.record(host)
        if record is None or not self._drivers[host].can_report_state:
            return None
        return record.state is PowerState.OFF

    def host_views(self, seen: Iterable[HostView], language: Language = Language.EN) -> tuple[HostView, ...]:
        """Return the views in `seen` with power states added, and views of declared hosts that were never seen."""
        by_id = {view.id: view for view in seen}
        at = self._dependencies.now()
        declared = {
            host: views.host_view(host, by_id.get(host), row.value, at, self._kept_on(host, row.value, language))
            for host, row in self._rows.items()
        }
        for host, row in self._rows.items():
            if why := self._poller.last_reported(host, row.value).why:
                declared[host] = views.with_unknown_power(declared[host], why)
        return tuple(views.localize(view, language) for _, view in sorted((by_id | declared).items()))

    def _kept_on(self, host: str, record: PowerRecord, language: Language) -> tuple[KeptOn, ...]:
        """Return why the host is on, by the facts of the last tick."""
        facts = self._facts.get(host)
        return () if facts is None else keep_reasons(PowerCase(record, facts, self._declared[host]), language)

    async def set_override(
        self, host: str, want: Literal["on", "off", "auto"], until: datetime | None = None
    ) -> PowerRecord:
        """Write the operator's override, which takes effect at once. Raises ProblemError `not_found`, BusError."""
        if host not in self._declared:
            raise ProblemError(
                "not_found", f"{host} has no power driver: declare it under [hosts.{host}] in the edge's settings"
            )
        override = None if want == "auto" else PowerOverride(want, until)
        row = await update_record(
            self._table, host, self._dependencies.now, lambda record: state_machine.with_override(record, override)
        )
        self._accept_own_write(host, row)
        self.request_tick()
        return row.value

    def subscribe(self, listener: Callable[[HostNotice], object]) -> Callable[[], None]:
        """Call `listener` with every notice; return a function that ends this. `listener` must not block."""
        self._subscribers.add(listener)
        return lambda: self._subscribers.discard(listener)

    def subscribe_records(self, listener: RecordChangeSubscriber) -> None:
        """Call `listener` with each change of a record that this edge sees, by any edge. It must not block."""
        self._record_subscribers.append(listener)

    def request_tick(self) -> None:
        """Start the next tick now, because something changed."""
        self._tick_requests.notify()

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Control the hosts until cancelled. The first tick waits until the jobs are known."""
        self._fleet.subscribe_job_changes(self.request_tick)
        await self._fleet.ready()
        async with anyio.create_task_group() as tasks:
            self._poller.start(tasks)
            while True:
                started_at, requested = anyio.current_time(), self._tick_requests.next_notification()
                await self._tick_and_call(tasks)
                with anyio.move_on_after(self._dependencies.tick_interval_s):
                    await requested.wait()
                await anyio.sleep_until(started_at + MIN_TICK_GAP_S)  # no delay after a quiet time

    async def _tick_and_call(self, tasks: TaskGroup) -> None:
        try:
            for due in await self.tick():
                tasks.start_soon(self._execute_call, due)
        except (BusError, ProblemError) as error:
            _log.warning("power_tick_failed", error=str(error))

    async def _execute_call(self, due: DuePowerCall) -> None:
        await self._call_executor.execute(due)
        self.request_tick()

    async def tick(self) -> list[DuePowerCall]:
        """Observe all hosts and write their records; return the calls to make. Raises BusError, ProblemError.

        Without a declared host nothing is read: there is nothing to decide, and an observation reads a row for each
        host that is online.
        """
        if not self._declared:
            return []
        known = dict(self._rows)
        rows = await self._read_rows()
        fleet = await self._observe(rows)
        self._online_hosts = fleet.online_hosts
        for host, row in rows.items():
            if self._rows.get(host) is known.get(host):  # else an override was written after the row was read
                self._accept_row(host, row)
        planned = self._host_observer.plan({host: row.value for host, row in rows.items()}, fleet)
        calls = [await self._decide(host, row, fleet, planned) for host, row in rows.items()]
        return [due for due in calls if due is not None]

    def _stop_facts(self, host: str, fleet: FleetObservation) -> HostFacts:
        """Return the facts by which a decided stop is judged once more. All records have been read by then."""
        planned = self._host_observer.plan_again(self.records(), fleet)
        return self._host_observer.planned_facts(host, fleet, planned)

    async def _read_rows(self) -> dict[str, TableRow[PowerRecord]]:
        """Return the rows of all declared hosts; create those that do not exist.

        All rows are read in one request: one request per host is slow.
        """
        stored = await self._table.rows()
        return {host: stored.get(host) or await self._get_or_create_row(host) for host in self._declared}

    async def _get_or_create_row(self, host: str) -> TableRow[PowerRecord]:
        return await update_record(self._table, host, self._dependencies.now, lambda record: record)

    async def _observe(self, rows: Mapping[str, TableRow[PowerRecord]]) -> FleetObservation:
        wakes = [views.wake_median_s(row.value) or DEFAULT_WAKE_S for row in rows.values()]
        is_draining = any(row.value.state is PowerState.DRAINING for row in rows.values())
        return await self._fleet.observe(
            WAKE_LEAD_FACTOR * max(wakes, default=DEFAULT_WAKE_S), include_queue=is_draining
        )

    def _accept_own_write(self, host: str, row: TableRow[PowerRecord]) -> None:
        """Keep a row that this edge has written, unless it has kept a newer one while it waited for the answer."""
        known = self._rows.get(host)
        if known is None or row.revision > known.revision:
            self._accept_row(host, row)

    def _accept_row(self, host: str, row: TableRow[PowerRecord]) -> None:
        """Keep a row, written by any edge, and notify listeners once of each change of state.

        A row that was read may have a lower revision than the known one: after a restore, revisions start again.
        """
        before, self._rows[host] = self._rows.get(host), row
        record = row.value
        if before is not None and before.revision != row.revision:
            for on_change in self._record_subscribers:
                on_change(host, before.value, record)
        if before is None or before.value.state is record.state:
            return
        self._poller.poll_now(host)
        _log.info("power_state_changed", host=host, state=record.state, reason=record.why)
        if (kind := views.NOTICE_KINDS.get(record.state)) is not None:
            for listener in tuple(self._subscribers):
                listener(HostNotice(kind, host, record.since, views.wake_median_s(record)))

    async def _decide(
        self, host: str, row: TableRow[PowerRecord], fleet: FleetObservation, planned: PlannedFleet
    ) -> DuePowerCall | None:
        reported = self._poller.last_reported(host, row.value).power
        report = DriverReport(self._drivers[host].can_report_state, reported)
        facts = self._facts[host] = self._host_observer.observe_host(host, row.value, fleet, planned, report)
        if (overdue := self._recover_unconfirmed_call(host, row.value)) is not None:
            return overdue
        call_id = self._dependencies.new_id()
        record = state_machine.advance(row.value, facts, self._declared[host], call_id)
        return None if record is None else await self._write_record(host, record, row.revision, call_id)

    async def _write_record(self, host: str, record: PowerRecord, revision: int, call_id: str) -> DuePowerCall | None:
        """Write the record; return its call if this edge has to make it. An error must not delay other hosts."""
        self.request_tick()
        try:
            row = TableRow(await self._table.update(host, record, revision), record)
        except RevisionConflict:
            return None  # another edge was faster
        except BusError as error:
            self._unconfirmed_calls[host] = call_id
            _log.warning("power_record_write_failed", host=host, error=str(error))
            return None
        self._accept_own_write(host, row)
        return DuePowerCall(host, record.call) if record.call and record.call.id == call_id else None

    def _recover_unconfirmed_call(self, host: str, record: PowerRecord) -> DuePowerCall | None:
        """Return the call whose write failed, if it was stored after all: no other edge makes it."""
        unconfirmed_id, call = self._unconfirmed_calls.pop(host, None), record.call
        return DuePowerCall(host, call) if call and call.id == unconfirmed_id and call.result is None else None

    def _current_record(self, host: str) -> tuple[PowerRecord, bool] | None:
        record = self.record(host)
        return None if record is None else (record, host in self._online_hosts)
