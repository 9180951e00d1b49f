"""What can press a host's button, in our words.

Calls are idempotent: a start of a host that is on, or is starting, is done, and so is a stop of one that is off. They
may be made again, by another edge too, after an answer was lost. There is no word for deleting a machine, and none may
come. How long a call may take is decided by who makes it (`edge.power.driver_calls`).

SwitchFailed   the call was not done: try again later, a few times
  NoCapacity   nothing is broken, the provider has no machine free: try again for as long as somebody waits
"""

from typing import Protocol

import msgspec
from msgspec import Struct

from schemas.power import ReportedPower


class PowerCallFailed(Exception):
    """The call was not done. The message says what failed, why, and what to do, in one line."""


class NoCapacity(PowerCallFailed):
    """There is no capacity now."""


class PowerDriver(Protocol):
    """One host's switch."""

    @property
    def can_report_state(self) -> bool:
        """Whether `state` can ever say OFF; without that a host is off when it is silent."""
        ...

    async def start(self, call_id: str) -> None:
        """Have it switched on; returns when the provider has taken the order. Raises SwitchFailed, NoCapacity."""
        ...

    async def stop(self, call_id: str) -> None:
        """Have it switched off. Raises SwitchFailed."""
        ...

    async def state(self) -> ReportedPower:
        """What the provider says of it now. Raises SwitchFailed when it says nothing."""
        ...


# MERGED edge/power/drivers/reply.py: What a relay or a webhook answers (PROTOCOLS 2): `{"state": "off|starting|…",
# "no_capacity": false}`.


class PowerDriverReply(Struct, frozen=True):
    """Both may be left out."""

    state: ReportedPower = ReportedPower.UNKNOWN
    no_capacity: bool = False


def parse_reply(body: bytes) -> PowerDriverReply:
    """The reply; an empty body says nothing. Raises SwitchFailed, NoCapacity."""
    try:
        reply = msgspec.json.decode(body, type=PowerDriverReply) if body.strip() else PowerDriverReply()
    except msgspec.DecodeError as error:
        raise PowerCallFailed(f'the switch answered what is no {{"state": …}}: {error}') from error
    return require_capacity(reply)


def require_capacity(reply: PowerDriverReply) -> PowerDriverReply:
    """The same reply; raises NoCapacity where it says so."""
    if reply.no_capacity:
        raise NoCapacity("the switch has no capacity now")
    return reply
