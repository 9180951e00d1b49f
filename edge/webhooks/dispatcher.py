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

from bus.interface import Bus, BusError, LeasedItem, RevisionConflict, TableRow, WebhookDelivery
from edge.core.clock import Clock, Entropy
from edge.index.index import JobIndex
from edge.index.row import RowChange
from edge.jobs.view import JobViewBuilder
from edge.webhooks.delivery_log import DeliveryLog
from edge.webhooks.retry_policy import RETRY_DELAYS_S, ReceiverCircuitBreaker, retry_delay_s
from edge.webhooks.secrets import WebhookSecretStore, WebhookSettings
from edge.webhooks.sender import DeliveryOutcome, WebhookSender
from schemas.webhook import LOGGED_ATTEMPT_LIMIT, DeliveryLogRow, DeliveryState, delivery_key

POLL_INTERVAL_S = 1.0  # letters that were put off come without a sound
NAK_DELAY_S = 5.0

_log = structlog.get_logger()


class DispatchLimits(Struct, frozen=True):
    """`at_once` tries; `dice` from 0 to 1; `retries_s`: the waits between tries."""

    concurrent_attempts: int
    random: Callable[[], float]
    retry_delays_s: tuple[float, ...] = RETRY_DELAYS_S


class WebhookDispatcher:
    """`run` does it, without end."""

    def __init__(  # noqa: PLR0913, PLR0917 - the services it works with
        self,
        bus: Bus,
        index: JobIndex,
        ledger: DeliveryLog,
        secrets: WebhookSecretStore,
        post: WebhookSender,
        receivers: ReceiverCircuitBreaker,
        clock: Clock,
        pace: DispatchLimits,
    ) -> None:
        self._bus = bus
        self._delivery_log = ledger
        self._secrets = secrets
        self._sender = post
        self._circuit_breaker = receivers
        self._clock = clock
        self._limits = pace
        self._attempt_slots = CapacityLimiter(pace.concurrent_attempts)
        self._work_available = Event()
        index.subscribe_changes(self._on_job_changes)

    async def run(self) -> None:
        """Judge and deliver."""
        async with create_task_group() as tasks:
            tasks.start_soon(self._repeat_forever, self._enqueue_next)
            tasks.start_soon(self._repeat_forever, self._delivery_step(tasks))

    def _on_job_changes(self, _steps: Sequence[RowChange]) -> None:
        self._wake_workers()

    def _wake_workers(self) -> None:
        self._work_available.set()
        self._work_available = Event()

    async def _repeat_forever(self, work: Callable[[], Awaitable[bool]]) -> None:
        """Do `work` while there is some, then wait until something moves; a broker that is away is waited for."""
        while True:
            stirred = self._work_available
            try:
                busy = await work()
            except BusError as error:
                _log.warning("webhooks_wait", error=str(error))
                await sleep(POLL_INTERVAL_S)
                continue
            if not busy:
                with move_on_after(POLL_INTERVAL_S):
                    await stirred.wait()

    async def _enqueue_next(self) -> bool:
        held = await self._bus.webhook_outbox.next_state_change()
        if held is None:
            return False
        if held.value is not None and held.value.record.job.webhook is not None:
            try:
                await self._delivery_log.enqueue(held.value)
            except BusError:
                await held.nak(NAK_DELAY_S)
                raise
            self._wake_workers()
        await held.ack()
        return True

    def _delivery_step(self, tasks: TaskGroup) -> Callable[[], Awaitable[bool]]:
        async def deliver() -> bool:
            held: LeasedItem[WebhookDelivery] | None = None
            place = object()
            await self._attempt_slots.acquire_on_behalf_of(place)
            try:
                held = await self._bus.webhook_outbox.fetch()
            finally:
                if held is None:
                    self._attempt_slots.release_on_behalf_of(place)
            if held is not None:
                tasks.start_soon(self._deliver_and_release, held, place)
            return held is not None

        return deliver

    async def _deliver_and_release(self, held: LeasedItem[WebhookDelivery], place: object) -> None:
        try:
            await self._deliver(held)
        except BusError as error:
            _log.warning("delivery_put_off", job_id=held.value.record.job.id, error=str(error))
        finally:
            self._attempt_slots.release_on_behalf_of(place)

    async def _deliver(self, held: LeasedItem[WebhookDelivery]) -> None:
        letter = held.value
        key = letter.record.job.key
        row = await self._bus.delivery_log.get(delivery_key(key, letter.revision))
        if row is None or row.value.state is not DeliveryState.PENDING or row.value.replays != letter.replay:
            await held.ack()  # it was delivered, forgotten, or sent anew meanwhile
            return
        early = self._seconds_until_due(row.value)
        if early > 0:  # the edge that tried died before it put the letter off
            await held.nak(early)
            return
        name = _receiver_name(row.value.url)
        busy = self._circuit_breaker.try_acquire(name)
        if busy is not None:
            await held.nak(busy)
            return
        await self._record_outcome(held, row, await self._attempt(letter, row.value, name))

    def _seconds_until_due(self, row: DeliveryLogRow) -> float:
        """Seconds until it is due. By a calendar that stands before the last try, and so was set back, it is."""
        now = self._clock()
        if row.next_attempt_at is None or (row.attempts and now < row.attempts[-1].at):
            return 0.0
        return (row.next_attempt_at - now).total_seconds()

    async def _attempt(self, letter: WebhookDelivery, row: DeliveryLogRow, name: str) -> DeliveryOutcome | None:
        """None: the URL wants nothing any more."""
        answered, took_s = True, 0.0
        try:
            hooks = await self._secrets.get(letter.record.job.owner)
            if row.url in hooks.disabled_urls:
                return None
            outcome = await self._sender.send(letter, row, hooks)
            answered, took_s = outcome.is_answered, outcome.attempt.took_s
            return outcome
        finally:
            self._circuit_breaker.release(name, answered=answered, took_s=took_s)

    async def _record_outcome(
        self, held: LeasedItem[WebhookDelivery], row: TableRow[DeliveryLogRow], outcome: DeliveryOutcome | None
    ) -> None:
        """Write down what came of it, then let the letter go or put it off."""
        owner = held.value.record.job.owner
        if outcome is not None and outcome.state is DeliveryState.DISABLED:
            await self._secrets.disable_receiver(owner, row.value.url)
        after, wait = self._next_row(row.value, outcome)
        try:
            key = delivery_key(held.value.record.job.key, row.value.revision)
            await self._bus.delivery_log.update(key, after, row.revision)
        except RevisionConflict:
            wait = 0.0 if wait is None else wait  # sent anew, or tried by two: whoever looks next goes by the row
        if wait is None:
            await held.ack()
        else:
            await held.nak(wait)

    def _next_row(self, row: DeliveryLogRow, outcome: DeliveryOutcome | None) -> tuple[DeliveryLogRow, float | None]:
        """The row as it is now, and the seconds to the next try; None: there is none."""
        if outcome is None:
            return structs.replace(row, state=DeliveryState.DISABLED, next_attempt_at=None), None
        tries = (*row.attempts, outcome.attempt)[-LOGGED_ATTEMPT_LIMIT:]
        if outcome.state is not DeliveryState.PENDING:
            return structs.replace(row, state=outcome.state, attempts=tries, next_attempt_at=None), None
        failed = row.failed_attempts + 1
        wait = retry_delay_s(failed, outcome.retry_after_s, self._limits.random(), self._limits.retry_delays_s)
        if wait is None:
            return structs.replace(
                row, state=DeliveryState.FAILED, attempts=tries, failed_attempts=failed, next_attempt_at=None
            ), None
        due = self._clock() + timedelta(seconds=wait)
        return structs.replace(row, attempts=tries, failed_attempts=failed, next_attempt_at=due), wait


def _receiver_name(url: str) -> str:
    """Whom a URL asks: one slow path of a server slows the others there, and no other server's."""
    return httpx.URL(url).netloc.decode("ascii", "replace").lower()


# MERGED edge/webhooks/build.py: The parts of webhooks, wired to each other.


class WebhookServices(Struct, frozen=True):
    """What routes ask, and what runs."""

    secrets: WebhookSecretStore
    delivery_log: DeliveryLog
    dispatcher: WebhookDispatcher


class WebhookDependencies(Struct, frozen=True, kw_only=True):
    """Time and chance. `running`: seconds on a clock that nobody sets back; `dice`: from 0 to 1."""

    now: Clock
    monotonic: Callable[[], float]
    entropy: Entropy
    random: Callable[[], float]
    retry_delays_s: tuple[float, ...] = RETRY_DELAYS_S


def build_webhooks(  # noqa: PLR0913, PLR0917 - the services it works with
    bus: Bus,
    index: JobIndex,
    viewer: JobViewBuilder,
    guarded: httpx.AsyncClient,
    settings: WebhookSettings,
    chances: WebhookDependencies,
) -> WebhookServices:
    """All of it; nothing runs yet."""
    secrets = WebhookSecretStore(bus.webhook_configs, chances.now, chances.entropy, settings.secret)
    ledger = DeliveryLog(bus, secrets, chances.now)
    post = WebhookSender(guarded, viewer, chances.now, chances.monotonic, settings.timeout_s)
    receivers = ReceiverCircuitBreaker(settings.at_once_each, chances.monotonic, chances.random)
    pace = DispatchLimits(settings.at_once, chances.random, chances.retry_delays_s)
    return WebhookServices(
        secrets, ledger, WebhookDispatcher(bus, index, ledger, secrets, post, receivers, chances.now, pace)
    )
