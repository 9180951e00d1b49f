"""The reply format of webhooks and relays. The port itself is `schemas.power_driver`."""

import msgspec
from msgspec import Struct

from schemas.power import ReportedPower
from schemas.power_driver import NoCapacity, PowerCallFailed


class PowerDriverReply(Struct, frozen=True):
    """The reply of a webhook or a relay: `{"state": "off|starting|…", "no_capacity": false}`. Both are optional."""

    state: ReportedPower = ReportedPower.UNKNOWN
    no_capacity: bool = False


def parse_reply(body: bytes) -> PowerDriverReply:
    """Decode a reply; an empty body is an empty reply. Raises PowerCallFailed, NoCapacity."""
    try:
        reply = msgspec.json.decode(body, type=PowerDriverReply) if body.strip() else PowerDriverReply()
    except msgspec.DecodeError as error:
        raise PowerCallFailed(f'the reply is not {{"state": …}}: {error}') from error
    return require_capacity(reply)


def require_capacity(reply: PowerDriverReply) -> PowerDriverReply:
    """Return `reply`. Raises NoCapacity if it reports this."""
    if reply.no_capacity:
        raise NoCapacity("the power driver reports no capacity")
    return reply
