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

from tests.broker import until
from tests.edge.store.served import served

Answer = Callable[[int], Response]


class Got(Struct, frozen=True):
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


class Receiver(Struct):
    """`answer` is given how many came before. `url` may be reached as files.test."""

    answer: Answer = lambda _: Response(status_code=204)
    url: str = ""
    got: list[Got] = field(default_factory=list)

    async def came(self, count: int) -> list[Got]:
        """Wait for that many."""

        async def enough() -> bool:
            return len(self.got) >= count

        await until(enough)
        return self.got

    def app(self) -> ASGIApp:
        async def hook(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive)
            body = await request.body()
            before = len(self.got)
            self.got.append(Got(dict(request.headers), body))
            await self.answer(before)(scope, receive, send)

        return hook


@asynccontextmanager
async def receiving(answer: Answer | None = None) -> AsyncIterator[Receiver]:
    """One, for as long as the block runs."""
    made = Receiver() if answer is None else Receiver(answer)
    async with served(made.app()) as url:
        made.url = url.replace("127.0.0.1", "files.test") + "/hook"
        yield made


def in_turn(*statuses: int, **headers: str) -> Answer:
    """One status after the other, the last for ever."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda before: Response(status_code=statuses[min(before, len(statuses) - 1)], headers=named)


async def settle() -> None:
    """Let everything that can go on go on."""
    await anyio.wait_all_tasks_blocked()
