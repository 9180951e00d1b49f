"""A webhook receiver: a real server with responses set by the test. The public package verifies signatures."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
from msgspec import Struct, field
from standardwebhooks import Webhook
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.http_server import serve_app
from tests.support.wait import wait_for

ReceiverResponse = Callable[[int], Response]


class ReceivedDelivery(Struct, frozen=True):
    """A received delivery."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def job(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body)["data"]
        return value

    def verified(self, secret: str) -> dict[str, Any]:
        """Verify with the public package and return the payload. It raises for a bad signature."""
        value: dict[str, Any] = Webhook(secret).verify(self.body, dict(self.headers))
        return value


class WebhookReceiver(Struct):
    """A receiver. `answer`: called with the number of earlier deliveries. `url`: on the host files.test."""

    answer: ReceiverResponse = lambda _: Response(status_code=204)
    url: str = ""
    got: list[ReceivedDelivery] = field(default_factory=list)

    async def wait_for_deliveries(self, count: int) -> list[ReceivedDelivery]:
        """Wait until `count` deliveries were received, and return all of them."""

        async def enough() -> bool:
            return len(self.got) >= count

        await wait_for(enough)
        return self.got

    def app(self) -> ASGIApp:
        async def hook(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive)
            body = await request.body()
            before = len(self.got)
            self.got.append(ReceivedDelivery(dict(request.headers), body))
            await self.answer(before)(scope, receive, send)

        return hook


@asynccontextmanager
async def run_receiver(answer: ReceiverResponse | None = None) -> AsyncIterator[WebhookReceiver]:
    """Run a receiver while the block runs."""
    made = WebhookReceiver() if answer is None else WebhookReceiver(answer)
    async with serve_app(made.app()) as url:
        made.url = url.replace("127.0.0.1", "files.test") + "/hook"
        yield made


def statuses_in_order(*statuses: int, **headers: str) -> ReceiverResponse:
    """Return responses with these statuses in order; the last one is repeated."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda before: Response(status_code=statuses[min(before, len(statuses) - 1)], headers=named)


async def let_tasks_run() -> None:
    """Wait until all tasks wait for an event."""
    await anyio.wait_all_tasks_blocked()
