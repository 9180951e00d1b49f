"""Whether a host that joined still is one: when it is removed, broker and edge refuse it at once."""

import anyio

from bus.port import Link
from runner.assets import AssetClient
from runner.supplies import EdgeAway

LOOK_S = 0.5


class Removed(Exception):
    """This host was put out. The message says what to do, in one line."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"{host} was removed from its installation, broker and edge refuse it: "
            f"to come back it needs a new token (`lamplighter hosts add {host}` there, `runner --join` here)"
        )


async def until_removed(link: Link, edge: AssetClient) -> None:
    """Return when the broker has dropped us and the edge, asked why, does not know our key.

    Either alone is no proof: a broker may be away, or refuse everybody while it is set up anew.
    """
    while True:
        await anyio.sleep(LOOK_S)
        if link.connected:
            continue
        try:
            if not await edge.knows_us():
                return
        except EdgeAway:
            continue
