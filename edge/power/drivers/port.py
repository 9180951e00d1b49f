"""What can press a host's button, in our words.

Calls are idempotent: a start of a host that is on, or is starting, is done, and so is a stop of one that is off. They
may be made again, by another edge too, after an answer was lost. There is no word for deleting a machine, and none may
come. How long a call may take is decided by who makes it (`edge.power.calls`).

SwitchFailed   the call was not done: try again later, a few times
  NoCapacity   nothing is broken, the provider has no machine free: try again for as long as somebody waits
"""

from typing import Protocol

from schemas.power import Provider


class SwitchFailed(Exception):
    """The call was not done. The message says what failed, why, and what to do, in one line."""


class NoCapacity(SwitchFailed):
    """There is no capacity now."""


class Driver(Protocol):
    """One host's switch."""

    @property
    def tells(self) -> bool:
        """Whether `state` can ever say OFF; without that a host is off when it is silent."""
        ...

    async def start(self, call_id: str) -> None:
        """Have it switched on; returns when the provider has taken the order. Raises SwitchFailed, NoCapacity."""
        ...

    async def stop(self, call_id: str) -> None:
        """Have it switched off. Raises SwitchFailed."""
        ...

    async def state(self) -> Provider:
        """What the provider says of it now. Raises SwitchFailed when it says nothing."""
        ...
