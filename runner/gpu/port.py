"""Port to the GPUs of this host; what its implementations share; and the monitor of a host that watches no GPU."""

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from types import TracebackType
from typing import Protocol, Self

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from bus.notifier import Notifier
from schemas.gpu import GpuMonitorState, GpuSnapshot, XidEvent

# A reader that is so far behind does not need one more event: the first ones already named the GPU.
EVENT_BACKLOG_LIMIT = 1024


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


class GpuStatePublisher:
    """Holds the latest snapshot and distributes XID events. One writer, many readers, all on one event loop."""

    def __init__(self) -> None:
        self._latest = GpuSnapshot(state=GpuMonitorState.NONE)
        self._changed = Notifier()
        self._readers: set[MemoryObjectSendStream[XidEvent]] = set()

    def snapshot(self) -> GpuSnapshot:
        return self._latest

    def publish(self, snapshot: GpuSnapshot) -> None:
        self._latest = snapshot
        self._changed.notify()

    async def wait_for_change(self, since: GpuSnapshot) -> GpuSnapshot:
        await self._changed.wait_until(lambda: self._latest is not since)
        return self._latest

    def publish_event(self, event: XidEvent) -> None:
        for reader in self._readers:
            try:
                reader.send_nowait(event)
            except anyio.WouldBlock:
                continue

    @contextmanager
    def events(self) -> Iterator[MemoryObjectReceiveStream[XidEvent]]:
        send, receive = anyio.create_memory_object_stream[XidEvent](EVENT_BACKLOG_LIMIT)
        self._readers.add(send)
        try:
            with send, receive:
                yield receive
        finally:
            self._readers.discard(send)


class NoGpuMonitor(GpuStatePublisher):
    """The monitor of a host without GPUs for jobs: its one snapshot shows no GPU and no error.

    `assigned`: where it is said that this runner has no GPU.
    """

    def __init__(self, assigned: str = "") -> None:
        super().__init__()
        self.publish(GpuSnapshot(state=GpuMonitorState.NONE, at=1, assigned=assigned))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
