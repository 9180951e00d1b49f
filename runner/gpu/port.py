"""What the runner may ask of its cards."""

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Protocol, Self

from anyio.streams.memory import MemoryObjectReceiveStream

from schemas.gpu import GpuSnapshot, XidEvent


class GpuMonitor(AbstractAsyncContextManager["GpuMonitor"], Protocol):
    """The cards of this host. Watches while it is entered; entering returns once the first word is there."""

    async def __aenter__(self) -> Self: ...

    def snapshot(self) -> GpuSnapshot:
        """The latest word. Never waits and never raises: a driver that hangs is a state."""
        ...

    async def wait_for_change(self, since: GpuSnapshot) -> GpuSnapshot:
        """Wait until there is a word other than `since`, and give the latest (some may have been skipped)."""
        ...

    def events(self) -> AbstractContextManager[MemoryObjectReceiveStream[XidEvent]]:
        """XID events from now on, each once, to every reader."""
        ...
