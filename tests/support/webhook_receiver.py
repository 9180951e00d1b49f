"""A webhook's receiver: a real server that answers as the test says and checks signatures with the public package."""

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
from tests.support.wait import wait_until

ReceiverResponse = Callable[[int], Response]


class ReceivedDelivery(Struct, frozen=True):
    """A delivery as it came."""

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
        """What the public package makes of it; it raises for a bad signature."""
        value: dict[str, Any] = Webhook(secret).verify(self.body, dict(self.headers))
        return value


class WebhookReceiver(Struct):
    """`answer` is given how many came before. `url` may be reached as files.test."""

    answer: ReceiverResponse = lambda _: Response(status_code=204)
    url: str = ""
    got: list[ReceivedDelivery] = field(default_factory=list)

    async def wait_for_deliveries(self, count: int) -> list[ReceivedDelivery]:
        """Wait for that many."""

        async def enough() -> bool:
            return len(self.got) >= count

        await wait_until(enough)
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
    """One, for as long as the block runs."""
    made = WebhookReceiver() if answer is None else WebhookReceiver(answer)
    async with serve_app(made.app()) as url:
        made.url = url.replace("127.0.0.1", "files.test") + "/hook"
        yield made


def statuses_in_order(*statuses: int, **headers: str) -> ReceiverResponse:
    """One status after the other, the last for ever."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda before: Response(status_code=statuses[min(before, len(statuses) - 1)], headers=named)


async def let_tasks_run() -> None:
    """Let everything that can go on go on."""
    await anyio.wait_all_tasks_blocked()
