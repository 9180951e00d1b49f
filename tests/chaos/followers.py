"""Followers that record every message, resume after the last one, and end when the edge closes the stream."""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import anyio
import httpx2
import websockets
from websockets.asyncio.client import connect

from lamplighter.api import job_path
from lamplighter.follow import Event, SseParser
from schemas.job import Status
from tests.chaos.evidence import StreamClosed, StreamMessage
from tests.chaos.recording_client import RecordingClient

RETRY_DELAY_S = 0.3
STREAM_TIMEOUT = httpx2.Timeout(10.0, read=20.0)  # the edge sends something at least every 15 s

EventGenerator = AsyncGenerator[Event, None]
OpenStream = Callable[[RecordingClient, str, str | None], EventGenerator]


class StreamBroken(Exception):
    """The connection ended without a proper close."""


async def open_sse(client: RecordingClient, job_id: str, after: str | None) -> EventGenerator:
    """Follow over one connection of server-sent events."""
    headers = {"Authorization": f"Bearer {client.key}"} | ({"Last-Event-ID": after} if after else {})
    reader = SseParser(after)
    try:
        async with (
            httpx2.AsyncClient(base_url=client.url, headers=headers, timeout=STREAM_TIMEOUT) as http,
            http.stream("GET", job_path(job_id, "events")) as answer,
        ):
            answer.raise_for_status()
            async for text in answer.aiter_text():
                for event in reader.read(text):
                    yield event
    except httpx2.HTTPError as error:
        raise StreamBroken(str(error)) from error


async def open_websocket(client: RecordingClient, job_id: str, after: str | None) -> EventGenerator:
    """Follow over one WebSocket."""
    url = client.url.replace("http", "ws", 1) + job_path(job_id, "events") + (f"?after={after}" if after else "")
    headers = {"Authorization": f"Bearer {client.key}"}
    try:
        async with connect(url, additional_headers=headers, open_timeout=10, close_timeout=2) as socket:
            async for message in socket:
                said = json.loads(message)
                yield Event(said["id"], said["event"], said["data"])
    except (OSError, TimeoutError, websockets.WebSocketException) as error:
        raise StreamBroken(str(error)) from error


async def follow_and_record(client: RecordingClient, job_id: str, stream: str, by: OpenStream) -> None:
    """Follow until the edge closes the stream, over as many connections as that takes."""
    after: str | None = None
    while True:
        try:
            async with aclosing(by(client, job_id, after)) as events:
                async for event in events:
                    after = event.id
                    client.history.note(_stream_message(stream, job_id, event))
        except StreamBroken:
            await anyio.sleep(RETRY_DELAY_S)
            continue
        client.history.note(StreamClosed(stream))
        return


def _stream_message(stream: str, job_id: str, event: Event) -> StreamMessage:
    said = event.data
    status = Status(said["status"]) if event.kind == "state" else None
    position = (job_id, said.get("round", 0), said.get("attempt") or 0)
    return StreamMessage(stream, event.id, event.kind, *position, said.get("revision"), status)
