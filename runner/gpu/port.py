"""What the runner may ask of its cards."""

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Protocol, Self

from anyio.streams.memory import MemoryObjectReceiveStream

from schemas.gpu import Snapshot, XidEvent


class Gpus(AbstractAsyncContextManager["Gpus"], Protocol):
    """The cards of this host. Watches while it is entered; entering returns once the first word is there."""

    async def __aenter__(self) -> Self: ...

    def snapshot(self) -> Snapshot:
        """The latest word. Never waits and never raises: a driver that hangs is a state."""
        ...

    async def changed(self, since: Snapshot) -> Snapshot:
        """Wait until there is a word other than `since`, and give the latest (some may have been skipped)."""
        ...

    def events(self) -> AbstractContextManager[MemoryObjectReceiveStream[XidEvent]]:
        """XID events from now on, each once, to every reader."""
        ...
