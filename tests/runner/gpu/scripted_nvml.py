"""A monitor whose children a test plays: it decides their messages, their exits, and whether a kill ends them."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from runner.gpu.monitor import MonitorTiming, NvmlChild, NvmlMonitor
from schemas.gpu import GpuMonitorState, GpuSnapshot, NvmlMessage, encode_nvml_message

DEADLINE_S = 60
PATIENT = MonitorTiming(first_reading_timeout_s=DEADLINE_S, reading_timeout_s=DEADLINE_S, restart_backoff_s=0.5)


class ScriptedNvmlChild:
    """Child that sends what the test decides. `stuck`: a kill does not end it, as in a hung driver."""

    def __init__(self, stuck: bool = False) -> None:
        self.killed = anyio.Event()
        self._stuck = stuck
        self._exit = anyio.Event()
        self._code = -9
        self._say, self._hear = anyio.create_memory_object_stream[bytes](math.inf)

    def say(self, *messages: NvmlMessage) -> None:
        for message in messages:
            self._say.send_nowait(encode_nvml_message(message).strip())

    def say_raw(self, line: bytes) -> None:
        self._say.send_nowait(line)

    def close(self) -> None:
        """Close its stdout; the process may go on."""
        self._say.close()

    def exit(self, code: int) -> None:
        self._code = code
        self.close()
        self._exit.set()

    async def read_line(self) -> bytes:
        return await self._hear.receive()

    def kill(self) -> None:
        self.killed.set()
        if not self._stuck:
            self._exit.set()

    async def wait(self) -> int:
        await self._exit.wait()
        self._say.close()
        self._hear.close()
        return self._code


class ScriptedMonitor:
    """A monitor, the children that it starts (the test supplies them), and its pauses, which pass at once."""

    def __init__(self, timing: MonitorTiming = PATIENT) -> None:
        self.pauses: list[float] = []
        self.now = 1000.0
        self._born, self._wanted = anyio.create_memory_object_stream[NvmlChild | OSError](math.inf)
        self.watch = NvmlMonitor(
            self._spawn, clock=lambda: self.now, random=lambda: 0.5, timing=timing, sleep=self._sleep
        )

    def next(self, child: NvmlChild | OSError) -> None:
        self._born.send_nowait(child)

    async def _spawn(self) -> NvmlChild:
        child = await self._wanted.receive()
        if isinstance(child, OSError):
            raise child
        return child

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await anyio.lowlevel.checkpoint()

    async def wait_for_state(self, state: GpuMonitorState) -> GpuSnapshot:
        snapshot = self.watch.snapshot()
        while snapshot.state is not state:
            snapshot = await self.watch.wait_for_change(snapshot)
        return snapshot

    def close(self) -> None:
        self._born.close()
        self._wanted.close()


@asynccontextmanager
async def run_scripted_monitor(
    first: ScriptedNvmlChild, timing: MonitorTiming = PATIENT
) -> AsyncIterator[ScriptedMonitor]:
    stage = ScriptedMonitor(timing)
    stage.next(first)
    with anyio.fail_after(DEADLINE_S):
        async with stage.watch:
            yield stage
    stage.close()
    first.close()
    first._hear.close()
