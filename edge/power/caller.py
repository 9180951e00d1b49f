"""Makes the calls that this edge has won, once each, and writes their answers down."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import structlog
from anyio import sleep
from msgspec import Struct

from bus.port import BusError, Conflict, Row, Table
from edge.power import law
from edge.power.calls import call
from edge.power.drivers.port import Driver
from edge.power.observer import glance
from edge.power.polls import POLL_S
from edge.power.sight import Sight
from edge.services.clock import Clock
from schemas.errors import Refused
from schemas.power import Answer, Call, Outcome, PowerRecord, Verb
from schemas.switch import HostDeclaration

TICK_S = 3.0
AGAIN_S = 1.0
DEFAULT_WAKE_S = 120.0
LEAD_WAKES = 2.0  # work that must start by a time calls its host so many usual wakes ahead

_log = structlog.get_logger()


class Means(Struct, frozen=True, kw_only=True):
    """Time and chance. `running` in seconds, never set back; `fresh_id`: a new token; `dice`: a number in [0, 1)."""

    now: Clock
    running: Callable[[], float]
    fresh_id: Callable[[], str]
    dice: Callable[[], float]
    tick_s: float = TICK_S
    poll_s: float = POLL_S


class Due(NamedTuple):
    """A call that this edge has to make."""

    host: str
    call: Call


async def read_row(table: Table[PowerRecord], host: str, now: Clock) -> Row[PowerRecord]:
    """The host's row; the first edge that looks makes it. Raises BusError."""
    while (row := await table.get(host)) is None:
        record = law.unseen(now())
        try:
            return Row(await table.create(host, record), record)
        except Conflict:
            continue
    return row


class Caller:
    """Presses the buttons. `drivers` has one for each declared host."""

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

    async def make(self, due: Due) -> None:
        """Make the call, and write its answer down. Without the broker it is not made: another edge may have it."""
        try:
            answer = await self._made(due)
        except (BusError, Refused) as error:
            _log.warning("power_call_left", host=due.host, error=str(error))
            return
        if answer is None:
            return
        _log.info("power_call", host=due.host, verb=due.call.verb, outcome=answer.outcome, why=answer.why)
        while not await self._written(due, answer):  # noqa: ASYNC110 - the broker's return is no event of ours
            await sleep(AGAIN_S)

    async def _made(self, due: Due) -> Answer | None:
        """None: the call is not ours any more."""
        row = await read_row(self._table, due.host, self._means.now)
        if row.value.call != due.call:
            return None
        if due.call.verb is Verb.STOP and (why := await self._withheld(due.host, row.value)):
            return Answer(Outcome.FAILED, why)
        return await call(self._drivers[due.host], due.call.verb, due.call.id, self._declared[due.host].timeout)

    async def _withheld(self, host: str, record: PowerRecord) -> str | None:
        outlook = await self._sight.look(LEAD_WAKES * DEFAULT_WAKE_S, closely=True)
        return law.withheld(record, glance(host, outlook), self._declared[host])

    async def _written(self, due: Due, answer: Answer) -> bool:
        """Whether the answer is written, or nobody waits for it any more."""
        try:
            row = await read_row(self._table, due.host, self._means.now)
            record = law.answered(row.value, due.call.id, answer, self._means.dice())
            if record is not None:
                await self._table.update(due.host, record, row.revision)
        except BusError:
            return False
        return True
