"""Applies the law: looks, decides, writes by compare-and-set, and only who wrote makes the call.

Any number of edges may do so at once: POWER is where they meet. A call whose edge died is made again by another one.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Literal

import anyio
import structlog
from anyio.abc import TaskGroup

from bus.port import BusError, Conflict, Row, Table
from edge.power import law, show
from edge.power.caller import DEFAULT_WAKE_S, LEAD_WAKES, Caller, Due, Means, read_row
from edge.power.drivers.port import Driver
from edge.power.facts import Stopwatch
from edge.power.observer import Observer, Told
from edge.power.polls import Polls
from edge.power.show import Prospect
from edge.power.sight import Outlook, Sight
from edge.services.hosts import HostNotice
from schemas.errors import Refused
from schemas.host import HostView
from schemas.power import Hold, PowerRecord, PowerState
from schemas.reasons import Reason
from schemas.switch import HostDeclaration

GAP_S = 0.05  # from one look to the next at least, however much happens

_log = structlog.get_logger()


class PowerController:
    """The declared hosts of one edge. `drivers` has one for each."""

    def __init__(
        self,
        table: Table[PowerRecord],
        sight: Sight,
        declared: Mapping[str, HostDeclaration],
        drivers: Mapping[str, Driver],
        means: Means,
    ) -> None:
        self._table = table
        self._sight = sight
        self._declared = declared
        self._drivers = drivers
        self._means = means
        self._caller = Caller(table, sight, declared, drivers, means)
        self._observer = Observer(declared, Stopwatch(means.running))
        self._polls = Polls(declared, drivers, self._current, self.notify, means.poll_s)
        self._rows: dict[str, Row[PowerRecord]] = {}
        self._present: frozenset[str] = frozenset()
        self._unsure: dict[str, str] = {}  # host to the id of a call that may or may not have been written
        self._listeners: set[Callable[[HostNotice], object]] = set()
        self._nudged = anyio.Event()

    # ── what others ask ──────────────────────────────────────────────────────────────────────────────────────────

    def state(self, host: str) -> PowerRecord | None:
        """The record as last read, None for a host that is not declared, or not known yet."""
        row = self._rows.get(host)
        return row.value if row else None

    def records(self) -> dict[str, PowerRecord]:
        """The records of all declared hosts, as last read."""
        return {host: row.value for host, row in self._rows.items()}

    def reason(self, host: str) -> Reason | None:
        """Why a job waits for this host; None while it is up, or when it is not declared."""
        record = self.state(host)
        return None if record is None else show.reason(record, self._polls.word(host, record))

    def prospect(self, endpoint: str) -> Prospect | None:
        """Why work for `endpoint` waits: the declared host that is nearest to taking it. None: no declared host may."""
        hosts, at = self._sight.offering(endpoint, self._declared), self._means.now()
        known = ((host, self.state(host), self.reason(host)) for host in hosts)
        return show.nearest(
            Prospect(why, host, show.wake_median_s(record), show.wake_left_s(record, at))
            for host, record, why in known
            if record and why
        )

    def switches(self, host: str) -> bool:
        """Whether the host is declared, so that it can be woken."""
        return host in self._declared

    async def is_off(self, host: str) -> bool | None:
        """Whether the host's switch reports it off; None when it has none, or one that cannot tell."""
        record = self.state(host)
        if record is None or not self._drivers[host].tells:
            return None
        return record.state is PowerState.OFF

    def views(self, seen: Iterable[HostView]) -> tuple[HostView, ...]:
        """`seen` with the power of those that are declared, and the declared hosts that never spoke."""
        by_id = {view.id: view for view in seen}
        at = self._means.now()
        powered = {host: show.shown(host, by_id.get(host), row.value, at) for host, row in self._rows.items()}
        return tuple(view for _, view in sorted((by_id | powered).items()))

    async def hold(self, host: str, want: Literal["on", "off", "auto"], until: datetime | None = None) -> PowerRecord:
        """Take the owner's wish down; the law acts on it at once. Raises Refused `not_found`, BusError."""
        if host not in self._declared:
            raise Refused("not_found", f"{host} has no switch: declare it under [hosts.{host}] at the edge")
        hold = None if want == "auto" else Hold(want, until)
        while True:
            row = await read_row(self._table, host, self._means.now)
            record = law.wished(row.value, hold)
            try:
                self._took(host, Row(await self._table.update(host, record, row.revision), record))
            except Conflict:
                continue
            self.notify()
            return record

    def listen(self, listener: Callable[[HostNotice], object]) -> Callable[[], None]:
        """Call `listener` with every notice; returns what ends that. It must not block."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def notify(self) -> None:
        """Something happened: look now."""
        self._nudged.set()

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Without end, from when the jobs are known."""
        self._sight.watch(self.notify)
        await self._sight.ready()
        async with anyio.create_task_group() as tasks:
            self._polls.start(tasks)
            while True:
                began = anyio.current_time()
                await self._turn(tasks)
                with anyio.move_on_after(self._means.tick_s):
                    await self._nudged.wait()
                await anyio.sleep_until(began + GAP_S)  # what comes after a quiet time is looked at now
                self._nudged = anyio.Event()

    async def _turn(self, tasks: TaskGroup) -> None:
        try:
            for due in await self.tick():
                tasks.start_soon(self._make, due)
        except (BusError, Refused) as error:
            _log.warning("power_put_off", error=str(error))

    async def _make(self, due: Due) -> None:
        await self._caller.make(due)
        self.notify()

    async def tick(self) -> list[Due]:
        """Look, and write what follows; the calls that are now this edge's to make. Raises BusError, Refused."""
        rows = {host: await read_row(self._table, host, self._means.now) for host in self._declared}
        outlook = await self._look(rows)
        self._present = frozenset(outlook.present)
        for host, row in rows.items():
            self._took(host, row)
        called = self._observer.called({host: row.value for host, row in rows.items()}, outlook)
        steps = [await self._step(host, row, outlook, called=host in called) for host, row in rows.items()]
        return [due for due in steps if due is not None]

    async def _look(self, rows: Mapping[str, Row[PowerRecord]]) -> Outlook:
        wakes = [show.wake_median_s(row.value) or DEFAULT_WAKE_S for row in rows.values()]
        draining = any(row.value.state is PowerState.DRAINING for row in rows.values())
        return await self._sight.look(LEAD_WAKES * max(wakes, default=DEFAULT_WAKE_S), closely=draining)

    def _took(self, host: str, row: Row[PowerRecord]) -> None:
        """A newer row, whoever wrote it: listeners hear of every change once."""
        before, self._rows[host] = self._rows.get(host), row
        record = row.value
        if before is None or before.value.state is record.state:
            return
        self._polls.hurry(host)
        _log.info("power", host=host, state=record.state, why=record.why)
        if (kind := show.NOTICES.get(record.state)) is not None:
            for listener in tuple(self._listeners):
                listener(HostNotice(kind, host, record.since, show.wake_median_s(record)))

    async def _step(self, host: str, row: Row[PowerRecord], outlook: Outlook, *, called: bool) -> Due | None:
        told = Told(self._drivers[host].tells, self._polls.word(host, row.value))
        facts = self._observer.facts(host, row.value, outlook, called=called, told=told)
        if (overdue := self._written_after_all(host, row.value)) is not None:
            return overdue
        call_id = self._means.fresh_id()
        record = law.advance(row.value, facts, self._declared[host], call_id)
        return None if record is None else await self._write(host, record, row.revision, call_id)

    async def _write(self, host: str, record: PowerRecord, revision: int, call_id: str) -> Due | None:
        """Compare-and-set. An error does not keep other hosts from their turn, and the next look tells what it did."""
        self.notify()
        try:
            row = Row(await self._table.update(host, record, revision), record)
        except Conflict:
            return None  # another edge was faster
        except BusError as error:
            self._unsure[host] = call_id
            _log.warning("power_not_written", host=host, error=str(error))
            return None
        self._took(host, row)
        return Due(host, record.call) if record.call and record.call.id == call_id else None

    def _written_after_all(self, host: str, record: PowerRecord) -> Due | None:
        """The call whose writing failed, if it was written all the same: nobody else will make it."""
        unsure, call = self._unsure.pop(host, None), record.call
        return Due(host, call) if call and call.id == unsure and call.answer is None else None

    def _current(self, host: str) -> tuple[PowerRecord, bool] | None:
        record = self.state(host)
        return None if record is None else (record, host in self._present)
