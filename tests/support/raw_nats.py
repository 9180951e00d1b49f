"""Asking the broker past the bus, as an operator or a stranger does."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import nats
from nats.aio.client import Client

from tests.support.nats_broker import BrokerProcess


class RawNats:
    """A bare connection of one user."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def api(self, verb: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer of the JetStream API, an error too."""
        answer = await self.client.request(f"$JS.API.{verb}", json.dumps(body or {}).encode())
        return json.loads(answer.data)

    async def publish(self, subject: str, data: bytes = b"", headers: dict[str, str] | None = None) -> dict[str, Any]:
        """The acknowledgement, or the error."""
        return json.loads((await self.client.request(subject, data, headers=headers)).data)

    async def update(self, stream: str, **changed: Any) -> dict[str, Any]:
        """Change some of a stream's configuration."""
        config = (await self.api(f"STREAM.INFO.{stream}"))["config"]
        return await self.api(f"STREAM.UPDATE.{stream}", {**config, **changed})


@asynccontextmanager
async def connect_raw(server: BrokerProcess, user: str = "edge") -> AsyncIterator[RawNats]:
    client = await nats.connect(
        server.url, user=user, password=server.passwords[user], inbox_prefix=f"_INBOX_{user}", allow_reconnect=False
    )
    try:
        yield RawNats(client)
    finally:
        await client.close()
