"""Publish to the broker directly, with the edge's rights."""

from bus.nats.connection import close_client, dial
from bus.settings import BrokerSettings
from tests.support.installation import RunningInstallation


async def _ignore_status(*_: Exception) -> None:
    """Ignore what the connection reports."""


async def publish_raw(running: RunningInstallation, subject: str, data: bytes) -> bytes:
    """Publish `data`; return the broker's answer."""
    server = running.installation.server
    client = await dial(
        BrokerSettings(server.url, "edge", server.passwords["edge"]), "_INBOX_edge", _ignore_status, _ignore_status
    )
    try:
        return bytes((await client.request(subject, data)).data)
    finally:
        await close_client(client)
