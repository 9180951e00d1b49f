"""A fake GPU monitor for tests. `NoGpuMonitor` is the one of hosts without a GPU watch."""

from types import TracebackType
from typing import Self

import msgspec

from runner.gpu.port import GpuStatePublisher
from schemas.gpu import GpuMonitorState, GpuSample, GpuSnapshot, LostGpu, XidEvent


class FakeGpuMonitor(GpuStatePublisher):
    """Shows what a test sets. `at` counts the snapshots, so that equal samples still make a new one."""

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
        """Show these GPUs with these values; a lost one that is shown again is no longer lost."""
        state = GpuMonitorState.OK if samples else GpuMonitorState.NONE
        shown = {sample.uuid for sample in samples}
        lost = tuple(gpu for gpu in self.snapshot().lost if gpu.uuid not in shown)
        self.publish(GpuSnapshot(state=state, at=self.snapshot().at + 1, samples=samples, lost=lost, driver="memory"))

    def set_state(self, state: GpuMonitorState, why: str = "") -> None:
        """Set the state of the monitor; the last samples stay."""
        self.publish(msgspec.structs.replace(self.snapshot(), state=state, why=why))

    def lose(self, uuid: str, why: str = "GPU is lost") -> None:
        """Let this GPU stop answering."""
        now = self.snapshot()
        kept = tuple(sample for sample in now.samples if sample.uuid != uuid)
        self.publish(msgspec.structs.replace(now, at=now.at + 1, samples=kept, lost=(*now.lost, LostGpu(uuid, why))))

    def report_xid(self, uuid: str, xid: int) -> None:
        """Report an XID on this GPU."""
        self.publish_event(XidEvent(uuid, xid, at=self.snapshot().at))
