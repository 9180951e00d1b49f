"""The port of a power driver. `lamplighter.power` is its public name, for drivers in packages of their own.

The last part of this module is the reply of a webhook and of a relay, which two of the drivers read.

Calls are idempotent: starting a host that is on or starting succeeds, and so does stopping one that is off. A call may
be repeated, also by another edge, after its result was lost. The port has no call that deletes a machine, and must not
get one. The caller sets the timeout.

PowerCallFailed   the call failed: repeat it a few times
  NoCapacity      the provider has no free machine: repeat it while jobs wait
"""

from collections.abc import Collection, Hashable, Mapping
from typing import Protocol, runtime_checkable

import msgspec
from msgspec import Struct

from schemas.power import ReportedPower


class PowerCallFailed(Exception):
    """The call failed. The message says what failed, why, and what to do, in one line."""


class NoCapacity(PowerCallFailed):
    """The provider has no free machine at the moment."""


class PowerDriver(Protocol):
    """A power driver: powers one host on and off, and reports its state."""

    @property
    def can_report_state(self) -> bool:
        """Return whether `state` can report OFF. Otherwise a host without heartbeats is treated as off."""
        ...

    async def start(self, call_id: str) -> None:
        """Power the host on; return when the order was accepted. Raises PowerCallFailed, NoCapacity."""
        ...

    async def stop(self, call_id: str) -> None:
        """Power the host off; return when the order was accepted. Raises PowerCallFailed."""
        ...

    async def state(self) -> ReportedPower:
        """Return the current power state. Raises PowerCallFailed if it is not available."""
        ...


@runtime_checkable
class ClusterPowerDriver(PowerDriver, Protocol):
    """A power driver that can report the states of all hosts of its cluster in one call."""

    @property
    def cluster(self) -> Hashable | None:
        """Return a value that is equal for the hosts that one call of `states` can report; None if it cannot."""
        ...

    async def states(self, hosts: Collection[str]) -> Mapping[str, ReportedPower]:
        """Return the current power states of these hosts of the cluster; one that is left out is UNKNOWN.

        Raises PowerCallFailed if none is available.
        """
        ...


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
