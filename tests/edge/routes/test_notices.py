"""Host notices of the event streams: every kind, over SSE and over a WebSocket, in both languages."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
import websockets

from edge.core.messages import NOTICE_TEXTS, format_notice
from edge.hosts.registry import HostNotice
from lamplighter.follow import SseParser
from schemas.texts import Language
from tests.edge.routes.test_events import socket_url
from tests.support.served_edge import ServedEdge
from tests.support.wait import wait_for

KINDS = (
    *("host_waking", "host_online", "host_offline", "host_blocked", "host_fault"),
    *("gpu_unhealthy", "gpu_recovered", "paused", "resumed"),
)
WAKE_S = 290.0

Take = Callable[[], Awaitable[dict[str, str]]]


@asynccontextmanager
async def by_sse(edge: ServedEdge, language: str) -> AsyncIterator[Take]:
    reader, found = SseParser(), []
    headers = {"Accept-Language": language}
    async with edge.ann.stream("GET", "/v1/events", headers=headers) as reply:
        lines = reply.aiter_lines()

        async def take() -> dict[str, str]:
            while not found:
                found.extend(reader.feed(await anext(lines)))
            event = found.pop(0)
            assert event.kind == "notice"
            return event.data

        yield take


@asynccontextmanager
async def by_websocket(edge: ServedEdge, language: str) -> AsyncIterator[Take]:
    headers = {"Authorization": f"Bearer {edge.texts['ann']}", "Accept-Language": language}
    async with websockets.connect(socket_url(edge, "/v1/events"), additional_headers=headers) as socket:

        async def take() -> dict[str, str]:
            said = json.loads(await socket.recv())
            assert said["event"] == "notice"
            data: dict[str, str] = said["data"]
            return data

        yield take


def test_these_are_all_the_notices_there_are() -> None:
    assert set(NOTICE_TEXTS) == set(KINDS)


@pytest.mark.parametrize("language", list(Language))
@pytest.mark.parametrize("opened", [by_sse, by_websocket])
async def test_every_notice_reaches_the_owners_who_listen(edge: ServedEdge, opened, language: Language) -> None:
    before = len(edge.world.hosts._subscribers)
    async with opened(edge, language.value) as take:
        at = edge.world.time()

        async def listening() -> bool:
            return len(edge.world.hosts._subscribers) > before

        await wait_for(listening)
        for kind in KINDS:
            edge.world.hosts.notify(HostNotice(kind, "gpu-1", at, WAKE_S))
        with anyio.fail_after(20):
            heard = [await take() for _ in KINDS]
    assert [(one["kind"], one["host"]) for one in heard] == [(kind, "gpu-1") for kind in KINDS]
    assert [one["message"] for one in heard] == [format_notice(kind, language, WAKE_S) for kind in KINDS]
    assert "5" in heard[0]["message"]  # minutes, by the host's measured median wake
