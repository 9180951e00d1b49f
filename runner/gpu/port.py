"""Port to the GPUs of this host."""

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Protocol, Self

from anyio.streams.memory import MemoryObjectReceiveStream

from schemas.gpu import GpuSnapshot, XidEvent


class GpuMonitor(AbstractAsyncContextManager["GpuMonitor"], Protocol):
    """Monitor of this host's GPUs. It runs while it is entered; entering returns after the first snapshot."""

    async def __aenter__(self) -> Self: ...

    def snapshot(self) -> GpuSnapshot:
        """Return the latest snapshot. Never waits and never raises: a driver that hangs is a state."""
        ...

    async def wait_for_change(self, since: GpuSnapshot) -> GpuSnapshot:
        """Wait for a snapshot other than `since`, and return the latest; some may have been skipped."""
        ...

    def events(self) -> AbstractContextManager[MemoryObjectReceiveStream[XidEvent]]:
        """Return a stream of the XID events from now on; every reader gets each event once."""
        ...
