"""A fake GPU monitor for tests. `NoGpuMonitor` is what hosts without a watch use."""

from types import TracebackType
from typing import Self

import msgspec

from runner.gpu.monitor import GpuStatePublisher
from schemas.gpu import GpuMonitorState, GpuSample, GpuSnapshot, LostGpu, XidEvent


class FakeGpuMonitor(GpuStatePublisher):
    """Shows what it is told to show. `at` counts the words, so that equal samples still make a new snapshot."""

    def __init__(self, *samples: GpuSample) -> None:
        super().__init__()
        self.show(*samples)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, *samples: GpuSample) -> None:
        """These cards answer now, with these values; a lost one that shows again is no longer lost."""
        state = GpuMonitorState.OK if samples else GpuMonitorState.NONE
        shown = {sample.uuid for sample in samples}
        lost = tuple(card for card in self.snapshot().lost if card.uuid not in shown)
        self.publish(GpuSnapshot(state=state, at=self.snapshot().at + 1, samples=samples, lost=lost, driver="memory"))

    def set_state(self, state: GpuMonitorState, why: str = "") -> None:
        """The watch itself is in `state`; samples stay as history."""
        self.publish(msgspec.structs.replace(self.snapshot(), state=state, why=why))

    def lose(self, uuid: str, why: str = "GPU is lost") -> None:
        """This card stops answering."""
        now = self.snapshot()
        kept = tuple(sample for sample in now.samples if sample.uuid != uuid)
        self.publish(msgspec.structs.replace(now, at=now.at + 1, samples=kept, lost=(*now.lost, LostGpu(uuid, why))))

    def report_xid(self, uuid: str, xid: int) -> None:
        """The driver reports an XID on this card."""
        self.publish_event(XidEvent(uuid, xid, at=self.snapshot().at))
