"""The port of a power driver. `lamplighter.power` is its public name, for drivers in packages of others.

Calls are idempotent: starting a host that is on or starting succeeds, and so does stopping one that is off. A call may
be repeated, also by another edge, after its result was lost. The port has no call that deletes a machine, and must not
get one. The caller sets the timeout.

PowerCallFailed   the call failed: repeat it a few times
  NoCapacity      the provider has no free machine: repeat it while jobs wait
"""

from typing import Protocol

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
