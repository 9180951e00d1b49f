"""What a relay or a webhook answers (PROTOCOLS 2): `{"state": "off|starting|…", "no_capacity": false}`."""

import msgspec
from msgspec import Struct

from edge.power.drivers.port import NoCapacity, SwitchFailed
from schemas.power import Provider


class SwitchReply(Struct, frozen=True):
    """Both may be left out."""

    state: Provider = Provider.UNKNOWN
    no_capacity: bool = False


def read_reply(body: bytes) -> SwitchReply:
    """The reply; an empty body says nothing. Raises SwitchFailed, NoCapacity."""
    try:
        reply = msgspec.json.decode(body, type=SwitchReply) if body.strip() else SwitchReply()
    except msgspec.DecodeError as error:
        raise SwitchFailed(f'the switch answered what is no {{"state": …}}: {error}') from error
    return checked(reply)


def checked(reply: SwitchReply) -> SwitchReply:
    """The same reply; raises NoCapacity where it says so."""
    if reply.no_capacity:
        raise NoCapacity("the switch has no capacity now")
    return reply
