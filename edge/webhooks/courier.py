"""Reads every state once, keeps a letter for each that has a webhook, and delivers the letters with their retries.

Both queues are the broker's: what an edge held when it died comes again to any edge.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import httpx
import structlog
from anyio import CapacityLimiter, Event, create_task_group, move_on_after, sleep
from anyio.abc import TaskGroup
from msgspec import Struct, structs

from bus.outgoing import Held, Letter
from bus.port import Bus, BusError, Conflict, Row
from edge.services.clock import Clock
from edge.services.index import Index
from edge.services.standing import Step
from edge.webhooks.ledger import Ledger
from edge.webhooks.post import Outcome, Post
from edge.webhooks.receivers import Receivers
from edge.webhooks.schedule import RETRIES_S, pause_s
from edge.webhooks.secrets import Secrets
from schemas.webhook import KEPT_TRIES, DeliveryRow, DeliveryState, delivery_key

LOOK_S = 1.0  # letters that were put off come without a sound
AGAIN_S = 5.0

_log = structlog.get_logger()


class Pace(Struct, frozen=True):
    """`at_once` tries; `dice` from 0 to 1; `retries_s`: the waits between tries."""

    at_once: int
    dice: Callable[[], float]
    retries_s: tuple[float, ...] = RETRIES_S


class Courier:
    """`run` does it, without end."""

    def __init__(  # noqa: PLR0913, PLR0917 - the services it works with
        self,
        bus: Bus,
        index: Index,
        ledger: Ledger,
        secrets: Secrets,
        post: Post,
        receivers: Receivers,
        clock: Clock,
        pace: Pace,
    ) -> None:
        self._bus = bus
        self._ledger = ledger
        self._secrets = secrets
        self._post = post
        self._receivers = receivers
        self._clock = clock
        self._pace = pace
        self._places = CapacityLimiter(pace.at_once)
        self._stirred = Event()
        index.watch(self._see)

    async def run(self) -> None:
        """Judge and deliver."""
        async with create_task_group() as tasks:
            tasks.start_soon(self._forever, self._judge)
            tasks.start_soon(self._forever, self._deliverer(tasks))

    def _see(self, _steps: Sequence[Step]) -> None:
        self._stir()

    def _stir(self) -> None:
        self._stirred.set()
        self._stirred = Event()

    async def _forever(self, work: Callable[[], Awaitable[bool]]) -> None:
        """Do `work` while there is some, then wait until something moves; a broker that is away is waited for."""
        while True:
            stirred = self._stirred
            try:
                busy = await work()
            except BusError as error:
                _log.warning("webhooks_wait", error=str(error))
                await sleep(LOOK_S)
                continue
            if not busy:
                with move_on_after(LOOK_S):
                    await stirred.wait()

    async def _judge(self) -> bool:
        held = await self._bus.outbox.judge()
        if held is None:
            return False
        if held.value is not None and held.value.recorded.job.webhook is not None:
            try:
                await self._ledger.send(held.value)
            except BusError:
                await held.later(AGAIN_S)
                raise
            self._stir()
        await held.done()
        return True

    def _deliverer(self, tasks: TaskGroup) -> Callable[[], Awaitable[bool]]:
        async def deliver() -> bool:
            held: Held[Letter] | None = None
            place = object()
            await self._places.acquire_on_behalf_of(place)
            try:
                held = await self._bus.outbox.take()
            finally:
                if held is None:
                    self._places.release_on_behalf_of(place)
            if held is not None:
                tasks.start_soon(self._handle, held, place)
            return held is not None

        return deliver

    async def _handle(self, held: Held[Letter], place: object) -> None:
        try:
            await self._deliver(held)
        except BusError as error:
            _log.warning("delivery_put_off", job_id=held.value.recorded.job.id, error=str(error))
        finally:
            self._places.release_on_behalf_of(place)

    async def _deliver(self, held: Held[Letter]) -> None:
        letter = held.value
        key = letter.recorded.job.key
        row = await self._bus.delivered.get(delivery_key(key, letter.revision))
        if row is None or row.value.state is not DeliveryState.PENDING or row.value.replays != letter.replay:
            await held.done()  # it was delivered, forgotten, or sent anew meanwhile
            return
        early = self._early_s(row.value)
        if early > 0:  # the edge that tried died before it put the letter off
            await held.later(early)
            return
        name = _receiver(row.value.url)
        busy = self._receivers.enter(name)
        if busy is not None:
            await held.later(busy)
            return
        await self._note(held, row, await self._try(letter, row.value, name))

    def _early_s(self, row: DeliveryRow) -> float:
        """Seconds until it is due. By a calendar that stands before the last try, and so was set back, it is."""
        now = self._clock()
        if row.next_at is None or (row.tries and now < row.tries[-1].at):
            return 0.0
        return (row.next_at - now).total_seconds()

    async def _try(self, letter: Letter, row: DeliveryRow, name: str) -> Outcome | None:
        """None: the URL wants nothing any more."""
        answered, took_s = True, 0.0
        try:
            hooks = await self._secrets.of(letter.recorded.job.owner)
            if row.url in hooks.disabled:
                return None
            outcome = await self._post.send(letter, row, hooks)
            answered, took_s = outcome.answered, outcome.tried.took_s
            return outcome
        finally:
            self._receivers.leave(name, answered=answered, took_s=took_s)

    async def _note(self, held: Held[Letter], row: Row[DeliveryRow], outcome: Outcome | None) -> None:
        """Write down what came of it, then let the letter go or put it off."""
        owner = held.value.recorded.job.owner
        if outcome is not None and outcome.state is DeliveryState.DISABLED:
            await self._secrets.disable(owner, row.value.url)
        after, wait = self._after(row.value, outcome)
        try:
            key = delivery_key(held.value.recorded.job.key, row.value.revision)
            await self._bus.delivered.update(key, after, row.revision)
        except Conflict:
            wait = 0.0 if wait is None else wait  # sent anew, or tried by two: whoever looks next goes by the row
        if wait is None:
            await held.done()
        else:
            await held.later(wait)

    def _after(self, row: DeliveryRow, outcome: Outcome | None) -> tuple[DeliveryRow, float | None]:
        """The row as it is now, and the seconds to the next try; None: there is none."""
        if outcome is None:
            return structs.replace(row, state=DeliveryState.DISABLED, next_at=None), None
        tries = (*row.tries, outcome.tried)[-KEPT_TRIES:]
        if outcome.state is not DeliveryState.PENDING:
            return structs.replace(row, state=outcome.state, tries=tries, next_at=None), None
        failed = row.failed + 1
        wait = pause_s(failed, outcome.asked_s, self._pace.dice(), self._pace.retries_s)
        if wait is None:
            return structs.replace(row, state=DeliveryState.FAILED, tries=tries, failed=failed, next_at=None), None
        due = self._clock() + timedelta(seconds=wait)
        return structs.replace(row, tries=tries, failed=failed, next_at=due), wait


def _receiver(url: str) -> str:
    """Whom a URL asks: one slow path of a server slows the others there, and no other server's."""
    return httpx.URL(url).netloc.decode("ascii", "replace").lower()
