"""Writing to the broker past everything of ours, with the edge's rights."""

from bus.nats.connection import close_client, dial
from bus.settings import BrokerSettings
from tests.support.installation import RunningInstallation


async def _ignore_status(*_: Exception) -> None:
    """A vandal does not listen."""


async def publish_raw(lit: RunningInstallation, subject: str, data: bytes) -> bytes:
    """The broker's answer."""
    server = lit.installation.server
    client = await dial(
        BrokerSettings(server.url, "edge", server.passwords["edge"]), "_INBOX_edge", _ignore_status, _ignore_status
    )
    try:
        return bytes((await client.request(subject, data)).data)
    finally:
        await close_client(client)
