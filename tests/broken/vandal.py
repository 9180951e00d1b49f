"""Writing to the broker past everything of ours, with the edge's rights."""

from bus.dial import dial, hang_up
from bus.settings import BrokerSettings
from tests.e2e.conftest import Lit


async def _heard(*_: Exception) -> None:
    """A vandal does not listen."""


async def put(lit: Lit, subject: str, data: bytes) -> bytes:
    """The broker's answer."""
    server = lit.installation.server
    client = await dial(BrokerSettings(server.url, "edge", server.passwords["edge"]), "_INBOX_edge", _heard, _heard)
    try:
        return bytes((await client.request(subject, data)).data)
    finally:
        await hang_up(client)
