"""Where the latest snapshot hangs, and from where XID events go to every reader. Shared by the watch and its fake."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from schemas.gpu import Snapshot, WatchState, XidEvent

# A reader this far behind learns nothing from one more: the first of them has already told it about the card.
BACKLOG = 1024


class Board:
    """One writer, many readers, all on one event loop."""

    def __init__(self) -> None:
        self._latest = Snapshot(state=WatchState.NONE)
        self._turned = anyio.Event()
        self._readers: set[MemoryObjectSendStream[XidEvent]] = set()

    def snapshot(self) -> Snapshot:
        return self._latest

    def post(self, snapshot: Snapshot) -> None:
        self._latest = snapshot
        self._turned.set()
        self._turned = anyio.Event()

    async def changed(self, since: Snapshot) -> Snapshot:
        while self._latest is since:
            await self._turned.wait()
        return self._latest

    def tell(self, event: XidEvent) -> None:
        for reader in self._readers:
            try:
                reader.send_nowait(event)
            except anyio.WouldBlock:
                continue

    @contextmanager
    def events(self) -> Iterator[MemoryObjectReceiveStream[XidEvent]]:
        send, receive = anyio.create_memory_object_stream[XidEvent](BACKLOG)
        self._readers.add(send)
        try:
            with send, receive:
                yield receive
        finally:
            self._readers.discard(send)


class NoGpuMonitor(Board):
    """The monitor of a host whose settings switch the GPU watch off: its one snapshot shows no GPU and no error."""

    def __init__(self) -> None:
        super().__init__()
        self.post(Snapshot(state=WatchState.NONE, at=1))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
