"""One attempt of a webhook delivery: sign the state of a job, send it, and classify the response."""

from collections.abc import Callable

import httpx2
import msgspec
import structlog
from anyio import fail_after

from bus.interface import VersionedRecord, WebhookDelivery
from edge.core.clock import Clock, micros
from edge.jobs.view import JobViewBuilder
from edge.outbound.ssrf_guard import send_request
from edge.outbound.url_policy import UrlRefused
from edge.webhooks.retry_policy import parse_retry_after_s
from schemas.webhook import (
    DeliveryAttempt,
    DeliveryLogRow,
    DeliveryState,
    OwnerWebhook,
    WebhookConfig,
    signature_headers,
)

_ERROR_LENGTH_LIMIT = 300  # characters of an error in the log

_log = structlog.get_logger()


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
