"""One try: the state of a job, signed and sent, and what its receiver made of it."""

from collections.abc import Callable

import httpx
import msgspec
import structlog
from anyio import fail_after

from bus.interface import VersionedRecord, WebhookDelivery
from edge.core.clock import Clock
from edge.jobs.view import JobViewBuilder
from edge.outbound.signature import signature_headers
from edge.outbound.ssrf_guard import send_request
from edge.outbound.url_policy import UrlRefused
from edge.webhooks.retry_policy import parse_retry_after_s
from schemas.webhook import DeliveryAttempt, DeliveryLogRow, DeliveryState, WebhookConfig

_ERROR_LENGTH_LIMIT = 300  # characters of an error

_log = structlog.get_logger()


class DeliveryOutcome(msgspec.Struct, frozen=True):
    """What a try came to. `state` PENDING: try again, not before `asked_s` have passed."""

    attempt: DeliveryAttempt
    state: DeliveryState
    retry_after_s: float = 0.0

    @property
    def is_answered(self) -> bool:
        """Whether the receiver said anything at all."""
        return self.attempt.status is not None


class WebhookSender:
    """`running` is a clock that nobody sets back, in seconds."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        viewer: JobViewBuilder,
        clock: Clock,
        running: Callable[[], float],
        timeout_s: float,
    ) -> None:
        self._client = client
        self._viewer = viewer
        self._clock = clock
        self._monotonic = running
        self._timeout_s = timeout_s

    async def send(self, letter: WebhookDelivery, row: DeliveryLogRow, hooks: WebhookConfig) -> DeliveryOutcome:
        """Try once. Never raises for what the receiver does."""
        at, began = self._clock(), self._monotonic()
        status, error, header, refused = None, None, None, False
        try:
            with fail_after(self._timeout_s):
                status, header = await self._post(letter, row, hooks)
        except UrlRefused as why:
            error, refused = str(why), True
        except TimeoutError:
            error = f"no answer within {self._timeout_s:g} s"
        except httpx.HTTPError as why:
            error = f"{type(why).__name__}: {why}"
        except Exception as why:  # the border to whatever strangers answer: see edge.core.error_handling
            _log.exception("delivery_broke", delivery=row.id)
            error = f"{type(why).__name__}: {why}"
        tried = DeliveryAttempt(
            at, round(self._monotonic() - began, 3), status, None if error is None else error[:_ERROR_LENGTH_LIMIT]
        )
        if refused:
            return DeliveryOutcome(tried, DeliveryState.FAILED)
        return DeliveryOutcome(tried, _state_for_status(status), parse_retry_after_s(header, at))

    async def _post(self, letter: WebhookDelivery, row: DeliveryLogRow, hooks: WebhookConfig) -> tuple[int, str | None]:
        view = self._viewer.build_without_progress(VersionedRecord(letter.revision, letter.record))
        body = msgspec.json.encode({"type": "job.state", "timestamp": letter.record.at, "data": view})
        signed = signature_headers(row.id, self._clock(), body, *hooks.signing_secrets(self._clock()))
        request = self._client.build_request(
            "POST", row.url, content=body, headers={"content-type": "application/json", **signed}
        )
        response = await send_request(self._client, request)  # what it says beside its status is not read
        await response.aclose()
        return response.status_code, response.headers.get("retry-after")


def _state_for_status(status: int | None) -> DeliveryState:
    if status is not None and httpx.codes.is_success(status):
        return DeliveryState.DELIVERED
    return DeliveryState.DISABLED if status == httpx.codes.GONE else DeliveryState.PENDING
