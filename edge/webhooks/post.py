"""One try: the state of a job, signed and sent, and what its receiver made of it."""

from collections.abc import Callable

import httpx
import msgspec
import structlog
from anyio import fail_after

from bus.outgoing import Letter
from bus.port import Entry
from edge.outbound.guard import send
from edge.outbound.signature import sign
from edge.outbound.targets import UrlRefused
from edge.services.clock import Clock
from edge.services.view import Viewer
from edge.webhooks.schedule import retry_after_s
from schemas.webhook import DeliveryRow, DeliveryState, Hooks, Try

_SAID = 300  # characters of an error

_log = structlog.get_logger()


class Outcome(msgspec.Struct, frozen=True):
    """What a try came to. `state` PENDING: try again, not before `asked_s` have passed."""

    tried: Try
    state: DeliveryState
    asked_s: float = 0.0

    @property
    def answered(self) -> bool:
        """Whether the receiver said anything at all."""
        return self.tried.status is not None


class Post:
    """`running` is a clock that nobody sets back, in seconds."""

    def __init__(
        self, client: httpx.AsyncClient, viewer: Viewer, clock: Clock, running: Callable[[], float], timeout_s: float
    ) -> None:
        self._client = client
        self._viewer = viewer
        self._clock = clock
        self._running = running
        self._timeout_s = timeout_s

    async def send(self, letter: Letter, row: DeliveryRow, hooks: Hooks) -> Outcome:
        """Try once. Never raises for what the receiver does."""
        at, began = self._clock(), self._running()
        status, error, header, refused = None, None, None, False
        try:
            with fail_after(self._timeout_s):
                status, header = await self._ask(letter, row, hooks)
        except UrlRefused as why:
            error, refused = str(why), True
        except TimeoutError:
            error = f"no answer within {self._timeout_s:g} s"
        except httpx.HTTPError as why:
            error = f"{type(why).__name__}: {why}"
        except Exception as why:  # the border to whatever strangers answer: see edge.services.fenced
            _log.exception("delivery_broke", delivery=row.id)
            error = f"{type(why).__name__}: {why}"
        tried = Try(at, round(self._running() - began, 3), status, None if error is None else error[:_SAID])
        if refused:
            return Outcome(tried, DeliveryState.FAILED)
        return Outcome(tried, _state(status), retry_after_s(header, at))

    async def _ask(self, letter: Letter, row: DeliveryRow, hooks: Hooks) -> tuple[int, str | None]:
        view = self._viewer.state(Entry(letter.revision, letter.recorded))
        body = msgspec.json.encode({"type": "job.state", "timestamp": letter.recorded.at, "data": view})
        signed = sign(row.id, self._clock(), body, *hooks.signing(self._clock()))
        request = self._client.build_request(
            "POST", row.url, content=body, headers={"content-type": "application/json", **signed}
        )
        response = await send(self._client, request)  # what it says beside its status is not read
        await response.aclose()
        return response.status_code, response.headers.get("retry-after")


def _state(status: int | None) -> DeliveryState:
    if status is not None and httpx.codes.is_success(status):
        return DeliveryState.DELIVERED
    return DeliveryState.DISABLED if status == httpx.codes.GONE else DeliveryState.PENDING
