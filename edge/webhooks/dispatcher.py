"""Webhook dispatcher: enqueue a delivery for each state of a job and each webhook, and send the deliveries.

Both queues are in the broker. Messages that an edge had leased when it died are delivered again, to any edge.

`WebhookSender` makes one attempt, and decides when it is made again: signature, retry delays, and a circuit breaker. An
unreachable or slow receiver must not occupy the attempt slots that others need. Its deliveries go back to the broker
with a delay.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import httpx2
import msgspec
import structlog
from anyio import CapacityLimiter, create_task_group, fail_after, move_on_after, sleep
from anyio.abc import TaskGroup
from msgspec import Struct, structs

from bus.interface import Bus, BusError, LeasedItem, RevisionConflict, TableRow, VersionedRecord, WebhookDelivery
from bus.notifier import Notifier
from edge.core.clock import HOUR_S, MINUTE_S, Clock, Entropy, micros
from edge.core.concurrency import translate_errors
from edge.core.metrics import EdgeMetrics
from edge.index.index import JobIndex
from edge.index.rows import RowChange
from edge.jobs.view import JobViewBuilder
from edge.outbound import AllowList, UrlRefused, send_request
from edge.webhooks.owner_webhooks import DeliveryLog, OwnerWebhookStore, WebhookSecretStore, WebhookSettings, row_key
from schemas.backoff import Backoff
from schemas.webhook import (
    LOGGED_ATTEMPT_LIMIT,
    DeliveryAttempt,
    DeliveryLogRow,
    DeliveryState,
    OwnerWebhook,
    WebhookConfig,
    signature_headers,
)

RETRY_DELAYS_S = (5.0, 5 * MINUTE_S, 30 * MINUTE_S, 2 * HOUR_S, 5 * HOUR_S, 10 * HOUR_S, 14 * HOUR_S, 20 * HOUR_S)
RETRY_JITTER = 0.2  # fraction of each delay that is added at random
RETRY_AFTER_LIMIT_S = 24 * HOUR_S  # the longest Retry-After that is honoured
FAILURE_THRESHOLD = 5  # consecutive attempts without a response that open the circuit
OPEN_MAX_S = 300.0
OPEN_BACKOFF = Backoff(5.0, OPEN_MAX_S)
DEFAULT_ATTEMPT_S = 0.05  # assumed duration of an attempt before one was measured
_SMOOTHING = 0.3  # weight of the latest attempt in the moving average

_log = structlog.get_logger()


def retry_delay_s(
    failed: int, requested_s: float, jitter: float, retries_s: tuple[float, ...] = RETRY_DELAYS_S
) -> float | None:
    """Return the seconds to wait after `failed` attempts, or None after the last one.

    `requested_s`: the receiver's Retry-After. `jitter` in [0, 1) spreads deliveries that failed at the same time.
    """
    if failed > len(retries_s):
        return None
    return max(retries_s[failed - 1] * (1 + RETRY_JITTER * jitter), min(requested_s, RETRY_AFTER_LIMIT_S))


def parse_retry_after_s(header: str | None, now: datetime) -> float:
    """Return the seconds of a Retry-After header (RFC 9110, 10.2.3); 0 if it is absent or malformed."""
    text = (header or "").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # OverflowError: a year that does not fit a C int
        return 0.0
    return max(0.0, ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds())


class _ReceiverState(Struct):
    active: int = 0
    consecutive_failures: int = 0
    open_until: float = 0.0
    deferred: int = 0
    attempt_s: float = DEFAULT_ATTEMPT_S


class ReceiverCircuitBreaker:
    """Limit concurrent attempts to each receiver, and to one while its circuit is open.

    `per_receiver`: concurrent attempts. `monotonic`: in seconds. `random`: returns a number in [0, 1), for jitter.
    """

    def __init__(self, per_receiver: int, monotonic: Callable[[], float], random: Callable[[], float]) -> None:
        self._limit_per_receiver = per_receiver
        self._monotonic = monotonic
        self._random = random
        self._receivers: dict[str, _ReceiverState] = {}

    def try_acquire(self, name: str) -> float | None:
        """Start an attempt and return None, or return the seconds to wait. A started attempt must be released."""
        receiver = self._receivers.setdefault(name, _ReceiverState())
        left_s = receiver.open_until - self._monotonic()
        is_failing = receiver.consecutive_failures >= FAILURE_THRESHOLD
        limit = 1 if is_failing else self._limit_per_receiver  # a failing receiver is probed by one attempt
        if left_s <= 0 and receiver.active < limit:
            receiver.active += 1
            receiver.deferred = 0
            return None
        # The delay is about the time until a slot is free, by the mean duration of an attempt. A fast receiver then
        # does not wait, and a slow one does not keep the dispatcher busy with delays.
        receiver.deferred += 1
        queue_s = min(OPEN_MAX_S, receiver.deferred * receiver.attempt_s / limit)
        return max(left_s, receiver.attempt_s) + queue_s * (1 + self._random()) / 2

    def release(self, name: str, *, answered: bool, took_s: float) -> None:
        """End an attempt. `answered`: the receiver sent a response, whatever its status."""
        receiver = self._receivers[name]
        receiver.active -= 1
        receiver.attempt_s += _SMOOTHING * (took_s - receiver.attempt_s)
        receiver.consecutive_failures = 0 if answered else receiver.consecutive_failures + 1
        if receiver.consecutive_failures >= FAILURE_THRESHOLD:
            receiver.open_until = self._monotonic() + OPEN_BACKOFF.delay_s(
                receiver.consecutive_failures - FAILURE_THRESHOLD
            )
        elif not receiver.active and not receiver.consecutive_failures:
            del self._receivers[name]


_ERROR_LENGTH_LIMIT = 300  # characters of an error in the log


class DeliveryOutcome(msgspec.Struct, frozen=True):
    """The result of an attempt. `state` PENDING: try again after at least `retry_after_s`."""

    attempt: DeliveryAttempt
    state: DeliveryState
    retry_after_s: float = 0.0

    @property
    def is_answered(self) -> bool:
        """Return whether the receiver sent a response."""
        return self.attempt.status is not None


class WebhookSender:
    """Sends one attempt. `monotonic`: in seconds."""

    def __init__(
        self,
        client: httpx2.AsyncClient,
        viewer: JobViewBuilder,
        clock: Clock,
        monotonic: Callable[[], float],
        timeout_s: float,
    ) -> None:
        self._client = client
        self._viewer = viewer
        self._clock = clock
        self._monotonic = monotonic
        self._timeout_s = timeout_s

    async def send(self, delivery: WebhookDelivery, row: DeliveryLogRow, config: WebhookConfig) -> DeliveryOutcome:
        """Make one attempt. Never raises for anything that the receiver does."""
        return await self._attempt(row.url, row.id, lambda: self._render_state(delivery), config)

    async def send_test(self, webhook: OwnerWebhook, config: WebhookConfig) -> DeliveryOutcome:
        """Send a test message to an owner-wide webhook. Never raises for anything that the receiver does."""
        at = self._clock()
        body = {"type": "webhook.test", "timestamp": at, "data": {"webhook": webhook.id}}
        message_id = f"test.{webhook.id}.{micros(at)}"
        return await self._attempt(webhook.url, message_id, lambda: msgspec.json.encode(body), config)

    async def _attempt(
        self, url: str, message_id: str, render: Callable[[], bytes], config: WebhookConfig
    ) -> DeliveryOutcome:
        at, started = self._clock(), self._monotonic()
        status, error, header, is_refused = None, None, None, False
        try:
            with fail_after(self._timeout_s):
                status, header = await self._post(url, message_id, render(), config)
        except UrlRefused as caught:
            error, is_refused = str(caught), True
        except TimeoutError:
            error = f"no answer within {self._timeout_s:g} s"
        except httpx2.HTTPError as caught:
            error = f"{type(caught).__name__}: {caught}"
        except Exception as caught:  # a receiver may send anything; one delivery must not stop the dispatcher
            _log.exception("webhook_attempt_failed", delivery=message_id)
            error = f"{type(caught).__name__}: {caught}"
        attempt = DeliveryAttempt(
            at, round(self._monotonic() - started, 3), status, None if error is None else error[:_ERROR_LENGTH_LIMIT]
        )
        if is_refused:
            return DeliveryOutcome(attempt, DeliveryState.FAILED)
        return DeliveryOutcome(attempt, _state_for_status(status), parse_retry_after_s(header, at))

    def _render_state(self, delivery: WebhookDelivery) -> bytes:
        view = self._viewer.build_without_progress(VersionedRecord(delivery.revision, delivery.record))
        return msgspec.json.encode({"type": "job.state", "timestamp": delivery.record.at, "data": view})

    async def _post(self, url: str, message_id: str, body: bytes, config: WebhookConfig) -> tuple[int, str | None]:
        signed = signature_headers(message_id, self._clock(), body, *config.signing_secrets(self._clock()))
        request = self._client.build_request(
            "POST", url, content=body, headers={"content-type": "application/json", **signed}
        )
        response = await send_request(self._client, request)  # only the status and Retry-After are read
        await response.aclose()
        return response.status_code, response.headers.get("retry-after")


def _state_for_status(status: int | None) -> DeliveryState:
    if status is not None and httpx2.codes.is_success(status):
        return DeliveryState.DELIVERED
    return DeliveryState.DISABLED if status == httpx2.codes.GONE else DeliveryState.PENDING


OUTBOX_POLL_INTERVAL_S = 1.0  # a delayed delivery does not trigger a wake-up
OUTBOX_NAK_DELAY_S = 5.0

StateObserver = Callable[[WebhookDelivery], Awaitable[None]]


class DispatchLimits(Struct, frozen=True):
    """Limits of the dispatcher. `random`: returns a number in [0, 1), for jitter."""

    concurrent_attempts: int
    random: Callable[[], float]
    retry_delays_s: tuple[float, ...] = RETRY_DELAYS_S


class DeliveryParts(Struct, frozen=True):
    """The parts that the dispatcher uses for each delivery."""

    secrets: WebhookSecretStore
    owner_webhooks: OwnerWebhookStore
    delivery_log: DeliveryLog
    sender: WebhookSender
    circuit_breaker: ReceiverCircuitBreaker


class WebhookDispatcher:
    """Enqueues and sends deliveries while `run` runs."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts that it works with
        self,
        bus: Bus,
        index: JobIndex,
        parts: DeliveryParts,
        clock: Clock,
        limits: DispatchLimits,
        metrics: EdgeMetrics,
    ) -> None:
        self._bus = bus
        self._delivery_log = parts.delivery_log
        self._secrets = parts.secrets
        self._owner_webhooks = parts.owner_webhooks
        self._sender = parts.sender
        self._circuit_breaker = parts.circuit_breaker
        self._clock = clock
        self._limits = limits
        self._metrics = metrics
        self._attempt_slots = CapacityLimiter(limits.concurrent_attempts)
        self._states, self._deliveries = Notifier(), Notifier()
        self._observers: list[StateObserver] = []
        index.subscribe_changes(self._on_job_changes)

    def subscribe_states(self, observer: StateObserver) -> None:
        """Call `observer` with each state of each job, once or, after a crash, again. It must be idempotent.

        It may raise BusError: then the state comes again.
        """
        self._observers.append(observer)

    async def run(self) -> None:
        """Enqueue and send deliveries until cancelled."""
        async with create_task_group() as tasks:
            tasks.start_soon(self._repeat_forever, self._enqueue_next, self._states)
            tasks.start_soon(self._repeat_forever, self._delivery_step(tasks), self._deliveries)

    def _on_job_changes(self, _changes: Sequence[RowChange]) -> None:
        self._states.notify()

    async def _repeat_forever(self, step: Callable[[], Awaitable[bool]], work: Notifier) -> None:
        """Call `step` until it returns False, then wait for `work`. Retry while the broker is unreachable."""
        while True:
            work_available = work.next_notification()
            try:
                has_worked = await step()
            except BusError as error:
                _log.warning("webhook_dispatch_delayed", error=str(error))
                await sleep(OUTBOX_POLL_INTERVAL_S)
                continue
            if not has_worked:
                with move_on_after(OUTBOX_POLL_INTERVAL_S):
                    await work_available.wait()

    async def _enqueue_next(self) -> bool:
        leased = await self._bus.webhook_outbox.next_state_change()
        if leased is None:
            return False
        if leased.value is not None:
            try:
                for observer in self._observers:
                    await observer(leased.value)
                await self._enqueue_deliveries(leased.value)
            except BusError:
                await leased.nak(OUTBOX_NAK_DELAY_S)
                raise
        await leased.ack()
        return not leased.is_last  # a later state notifies: another fetch now would find nothing

    async def _enqueue_deliveries(self, state: WebhookDelivery) -> None:
        """Enqueue a state for the webhook of its job and for those of its owner. Idempotent. Raises BusError."""
        job = state.record.job
        if job.webhook is not None:
            await self._delivery_log.enqueue(state, job.webhook.url)
            self._deliveries.notify()
        for webhook in await self._owner_webhooks.find_matching(job):
            await self._delivery_log.enqueue(structs.replace(state, webhook=webhook.id), webhook.url)
            self._deliveries.notify()

    def _delivery_step(self, tasks: TaskGroup) -> Callable[[], Awaitable[bool]]:
        async def deliver() -> bool:
            leased: LeasedItem[WebhookDelivery] | None = None
            slot = object()
            await self._attempt_slots.acquire_on_behalf_of(slot)
            try:
                leased = await self._bus.webhook_outbox.fetch()
            finally:
                if leased is None:
                    self._attempt_slots.release_on_behalf_of(slot)
            if leased is not None:
                tasks.start_soon(self._deliver_and_release, leased, slot)
            return leased is not None

        return deliver

    async def _deliver_and_release(self, leased: LeasedItem[WebhookDelivery], slot: object) -> None:
        try:
            await self._deliver(leased)
        except BusError as error:
            _log.warning("webhook_delivery_delayed", job_id=leased.value.record.job.id, error=str(error))
        finally:
            self._attempt_slots.release_on_behalf_of(slot)

    async def _deliver(self, leased: LeasedItem[WebhookDelivery]) -> None:
        delivery = leased.value
        row = await self._bus.delivery_log.get(row_key(delivery))
        if row is None or row.value.state is not DeliveryState.PENDING or row.value.replays != delivery.replay:
            await leased.ack()  # it was delivered, deleted, or replayed in the meantime
            return
        wait_s = self._seconds_until_due(row.value)
        if wait_s > 0:  # the edge that made the attempt died before it delayed the message
            await leased.nak(wait_s)
            return
        name = _receiver_name(row.value.url)
        delay_s = self._circuit_breaker.try_acquire(name)
        if delay_s is not None:
            await leased.nak(delay_s)
            return
        await self._record_outcome(leased, row, await self._attempt(delivery, row.value, name))

    def _seconds_until_due(self, row: DeliveryLogRow) -> float:
        """Return the seconds until the next attempt; 0 if the clock is before the last attempt, so was set back."""
        now = self._clock()
        if row.next_attempt_at is None or (row.attempts and now < row.attempts[-1].at):
            return 0.0
        return (row.next_attempt_at - now).total_seconds()

    async def _attempt(self, delivery: WebhookDelivery, row: DeliveryLogRow, name: str) -> DeliveryOutcome | None:
        """Make one attempt; return None if the receiver is disabled or its webhook was deleted."""
        answered, took_s = True, 0.0
        owner = delivery.record.job.owner
        try:
            config = await self._secrets.get(owner)
            if row.url in config.disabled_urls or not await self._owner_webhooks.has(owner, delivery.webhook):
                return None
            outcome = await self._sender.send(delivery, row, config)
            answered, took_s = outcome.is_answered, outcome.attempt.took_s
            return outcome
        finally:
            self._circuit_breaker.release(name, answered=answered, took_s=took_s)

    async def _record_outcome(
        self, leased: LeasedItem[WebhookDelivery], row: TableRow[DeliveryLogRow], outcome: DeliveryOutcome | None
    ) -> None:
        """Write the outcome to the log, then acknowledge the message or delay it."""
        owner = leased.value.record.job.owner
        if outcome is not None and outcome.state is DeliveryState.DISABLED:
            await self._secrets.disable_receiver(owner, row.value.url)
        after, wait = self._next_row(row.value, outcome)
        if outcome is not None:
            self._metrics.webhook_attempts.inc(after.state)
            self._metrics.webhook_durations.observe(outcome.attempt.took_s)
        try:
            await self._bus.delivery_log.update(row_key(leased.value), after, row.revision)
        except RevisionConflict:
            wait = 0.0 if wait is None else wait  # replayed, or attempted twice: the next edge goes by the row
        if wait is None:
            await leased.ack()
        else:
            await leased.nak(wait)

    def _next_row(self, row: DeliveryLogRow, outcome: DeliveryOutcome | None) -> tuple[DeliveryLogRow, float | None]:
        """Return the new row, and the seconds until the next attempt; None if there is no further attempt."""
        if outcome is None:
            return structs.replace(row, state=DeliveryState.DISABLED, next_attempt_at=None), None
        attempts = (*row.attempts, outcome.attempt)[-LOGGED_ATTEMPT_LIMIT:]
        if outcome.state is not DeliveryState.PENDING:
            return structs.replace(row, state=outcome.state, attempts=attempts, next_attempt_at=None), None
        failed = row.failed_attempts + 1
        wait = retry_delay_s(failed, outcome.retry_after_s, self._limits.random(), self._limits.retry_delays_s)
        if wait is None:
            return structs.replace(
                row, state=DeliveryState.FAILED, attempts=attempts, failed_attempts=failed, next_attempt_at=None
            ), None
        due = self._clock() + timedelta(seconds=wait)
        return structs.replace(row, attempts=attempts, failed_attempts=failed, next_attempt_at=due), wait


def _receiver_name(url: str) -> str:
    """Return host and port of a URL: a slow path delays other paths of its server, but no other server."""
    return httpx2.URL(url).netloc.decode("ascii", "replace").lower()


class WebhookServices(Struct, frozen=True):
    """The webhook services that routes use, and the dispatcher."""

    secrets: WebhookSecretStore
    owner_webhooks: OwnerWebhookStore
    delivery_log: DeliveryLog
    dispatcher: WebhookDispatcher
    sender: WebhookSender

    async def send_test(self, owner: str, webhook_id: str) -> DeliveryOutcome:
        """Send one test message, and enable the receiver if it takes it. Raises ProblemError `not_found`."""
        webhook = await self.owner_webhooks.get(owner, webhook_id)
        with translate_errors():
            outcome = await self.sender.send_test(webhook, await self.secrets.get(owner))
            if outcome.state is DeliveryState.DELIVERED:
                await self.secrets.enable_receiver(owner, webhook.url)
        return outcome


class WebhookDependencies(Struct, frozen=True, kw_only=True):
    """Clocks and randomness. `monotonic`: in seconds. `random`: returns a number in [0, 1)."""

    now: Clock
    monotonic: Callable[[], float]
    entropy: Entropy
    random: Callable[[], float]
    retry_delays_s: tuple[float, ...] = RETRY_DELAYS_S


def build_webhooks(  # noqa: PLR0913, PLR0917 - the services it works with
    bus: Bus,
    index: JobIndex,
    viewer: JobViewBuilder,
    guarded: httpx2.AsyncClient,
    url_allow_list: AllowList,
    settings: WebhookSettings,
    dependencies: WebhookDependencies,
    metrics: EdgeMetrics,
) -> WebhookServices:
    """Create the webhook services. Nothing runs before `dispatcher.run`."""
    now, monotonic, random = dependencies.now, dependencies.monotonic, dependencies.random
    secrets = WebhookSecretStore(bus.webhook_configs, now, dependencies.entropy, settings.secret)
    owner_webhooks = OwnerWebhookStore(bus.owner_webhooks, url_allow_list, now, dependencies.entropy)
    log = DeliveryLog(bus, secrets, owner_webhooks, now)
    sender = WebhookSender(guarded, viewer, now, monotonic, settings.timeout_s)
    circuit_breaker = ReceiverCircuitBreaker(settings.at_once_each, monotonic, random)
    limits = DispatchLimits(settings.at_once, random, dependencies.retry_delays_s)
    parts = DeliveryParts(secrets, owner_webhooks, log, sender, circuit_breaker)
    dispatcher = WebhookDispatcher(bus, index, parts, now, limits, metrics)
    return WebhookServices(secrets, owner_webhooks, log, dispatcher, sender)
