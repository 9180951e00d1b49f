"""Where the latest snapshot hangs, and from where XID events go to every reader. Shared by the watch and its fake."""

import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from subprocess import DEVNULL, PIPE
from types import TracebackType
from typing import Protocol, Self, cast

import anyio
import msgspec
import structlog
from anyio.abc import ByteReceiveStream, Process, TaskGroup
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from msgspec import Struct

from runner.gpu.nvml_protocol import EXIT_RENEW, LINE_LIMIT_BYTES, STATE_BY_EXIT_CODE, NvmlEnding, NvmlReading, decode
from schemas.environment import GPU_PREFIXES, build_child_environment
from schemas.gpu import GpuMonitorState, GpuSnapshot, LostGpu, XidEvent

# A reader this far behind learns nothing from one more: the first of them has already told it about the card.
EVENT_BACKLOG_LIMIT = 1024


class GpuStatePublisher:
    """One writer, many readers, all on one event loop."""

    def __init__(self) -> None:
        self._latest = GpuSnapshot(state=GpuMonitorState.NONE)
        self._changed = anyio.Event()
        self._readers: set[MemoryObjectSendStream[XidEvent]] = set()

    def snapshot(self) -> GpuSnapshot:
        return self._latest

    def publish(self, snapshot: GpuSnapshot) -> None:
        self._latest = snapshot
        self._changed.set()
        self._changed = anyio.Event()

    async def wait_for_change(self, since: GpuSnapshot) -> GpuSnapshot:
        while self._latest is since:
            await self._changed.wait()
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
    """The monitor of a host whose settings switch the GPU watch off: its one snapshot shows no GPU and no error."""

    def __init__(self) -> None:
        super().__init__()
        self.publish(GpuSnapshot(state=GpuMonitorState.NONE, at=1))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


# MERGED runner/gpu/child.py: A running NVML child, as the watch needs it.


class NvmlChild(Protocol):
    """A process that writes lines and may be stuck in the kernel."""

    async def read_line(self) -> bytes:
        """The next line of stdout; raises anyio.EndOfStream or anyio.IncompleteRead when there is none."""
        ...

    def kill(self) -> None:
        """Ask the kernel to end it; a process inside a hung driver goes on until the driver lets it go."""
        ...

    async def wait(self) -> int:
        """Wait for its exit code, however long the driver holds it."""
        ...


SpawnChild = Callable[[], Awaitable[NvmlChild]]
"""Starts a child; raises OSError when it cannot."""


class NvmlProcess:
    """`python -m runner.gpu.nvml` with a pipe on its stdout. Its stderr is the runner's: only a bug writes there."""

    def __init__(self, process: Process, stdout: ByteReceiveStream) -> None:
        self._process = process
        self._stdout = BufferedByteReceiveStream(stdout)

    async def read_line(self) -> bytes:
        return await self._stdout.receive_until(b"\n", LINE_LIMIT_BYTES)

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()

    async def wait(self) -> int:
        code = await self._process.wait()
        await self._stdout.aclose()
        return code


def nvml_spawner(interval_s: float = 1.0, renew_s: float = 60.0, env: Mapping[str, str] | None = None) -> SpawnChild:
    """Start children that read all cards every `interval_s`, and end `renew_s` after a card was lost.

    `env` replaces what they inherit of the runner's environment.
    """
    inherited = build_child_environment(os.environ, prefixes=GPU_PREFIXES) if env is None else env

    async def spawn() -> NvmlChild:
        argv = [sys.executable, "-m", "runner.gpu.nvml", str(interval_s), str(renew_s)]
        # Its own session: Ctrl-C in the runner's terminal must drain the runner, not blind it first.
        process = await anyio.open_process(
            argv, stdin=DEVNULL, stdout=PIPE, stderr=None, env=inherited, start_new_session=True
        )
        return NvmlProcess(process, cast(ByteReceiveStream, process.stdout))  # there, for it was opened with PIPE

    return spawn


# MERGED runner/gpu/watch.py: The watch: keeps an NVML child alive and its latest word at hand. The real `GpuMonitor`.
# / A driver that hangs, an upgraded library, a missing driver or a dying child are states of the snapshot: nothing
# here / raises, and nothing of the runner waits for the driver.


log = structlog.get_logger(__name__)

ChildFailure = tuple[GpuMonitorState, str]
"""Why a child is no longer listened to: a state and the driver's own words."""

STATE_REASONS = {
    GpuMonitorState.NONE: "no NVIDIA card found: endpoints that need none, or for which it is optional, still run",
    GpuMonitorState.NO_DRIVER: "the NVIDIA driver is not loaded: run nvidia-smi on the host and mend what it says",
    GpuMonitorState.MISMATCH: "the NVIDIA driver was upgraded while loaded: reboot the host if this stays",
    GpuMonitorState.HUNG: "the NVIDIA driver does not answer: waiting for it; reboot the host if this stays",
    GpuMonitorState.FAILED: "the GPU watch died and is started again",
}
# The longest pause before a new child, seconds: how soon the state could change without anyone telling us.
RESTART_BACKOFF_LIMIT_S = {
    GpuMonitorState.OK: 0.5,
    GpuMonitorState.NONE: 300.0,
    GpuMonitorState.NO_DRIVER: 30.0,
    GpuMonitorState.MISMATCH: 30.0,
    GpuMonitorState.HUNG: 30.0,
    GpuMonitorState.FAILED: 30.0,
}
BACKOFF_DOUBLING_LIMIT = 16  # of the first pause; every longest pause is reached before
REAP_TIMEOUT_S = 1.0  # at shutdown: how long a killed child may take before it is left to the kernel


class MonitorTiming(Struct, frozen=True):
    """Seconds. `first_s` is long: without persistence mode the driver wakes every card first."""

    first_reading_timeout_s: float = 30.0
    reading_timeout_s: float = 5.0
    restart_backoff_s: float = 0.5


DEFAULT_TIMING = MonitorTiming()


class NvmlMonitor(GpuStatePublisher):
    """`clock` gives Unix time; `random` a number in [0, 1) that spreads restarts."""

    def __init__(
        self,
        spawn: SpawnChild,
        *,
        clock: Callable[[], float],
        random: Callable[[], float],
        timing: MonitorTiming = DEFAULT_TIMING,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        super().__init__()
        self._spawn, self._clock, self._random, self._sleep = spawn, clock, random, sleep
        self._timing = timing
        self._known_gpus: dict[str, LostGpu] = {}  # every card ever seen, as it will be reported once it is gone
        self._tasks: TaskGroup

    async def __aenter__(self) -> Self:
        before = self.snapshot()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._supervise)
        try:
            await self.wait_for_change(before)
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._tasks.cancel_scope.cancel()
        return await self._tasks.__aexit__(kind, error, trace)

    async def _supervise(self) -> None:
        failures = 0
        while True:
            before = self.snapshot().at
            state = await self._run_child()
            failures = failures + 1 if self.snapshot().at == before else 0
            pause = min(
                self._timing.restart_backoff_s * 2 ** min(failures, BACKOFF_DOUBLING_LIMIT),
                RESTART_BACKOFF_LIMIT_S[state],
            )
            await self._sleep(pause * (1 + self._random()) / 2)

    async def _run_child(self) -> GpuMonitorState:
        """Start a child, listen until it falls silent or ends, post the state that leaves."""
        try:
            child = await self._spawn()
        except OSError as error:
            return self._set_failed(GpuMonitorState.FAILED, str(error))
        try:
            state, words = await self._listen(child)
            child.kill()
            self._set_failed(state, words)
            # A child inside a hung driver ends when the driver lets it go, which is also when a new one could do
            # better; started earlier, it would only hang beside the first.
            await child.wait()
        except anyio.get_cancelled_exc_class():
            child.kill()
            with anyio.move_on_after(REAP_TIMEOUT_S, shield=True):
                await child.wait()
            raise
        return state

    async def _listen(self, child: NvmlChild) -> ChildFailure:
        """Take in what the child says, until it ends or says nothing for too long."""
        patience, words = self._timing.first_reading_timeout_s, ""
        while True:
            try:
                with anyio.fail_after(patience):
                    message = decode(await child.read_line())
            except TimeoutError:
                return GpuMonitorState.HUNG, ""
            except (anyio.EndOfStream, anyio.IncompleteRead):
                return await self._classify_exit(child), words
            except (msgspec.MsgspecError, anyio.DelimiterNotFound) as error:
                return GpuMonitorState.FAILED, f"unreadable: {error}"
            match message:
                case NvmlReading():
                    patience = self._timing.reading_timeout_s
                    self._publish_reading(message)
                case NvmlEnding(why):
                    words = why
                case event:
                    self.publish_event(event)

    async def _classify_exit(self, child: NvmlChild) -> GpuMonitorState:
        """What the exit code says; a child that cannot even exit hangs in the driver."""
        with anyio.move_on_after(self._timing.reading_timeout_s):
            code = await child.wait()
            return self.snapshot().state if code == EXIT_RENEW else STATE_BY_EXIT_CODE.get(code, GpuMonitorState.FAILED)
        return GpuMonitorState.HUNG

    def _publish_reading(self, reading: NvmlReading) -> None:
        """A reading becomes the snapshot. A card that was seen before and is not listed now is lost."""
        uuids = {card.index: card.uuid for card in self._known_gpus.values()}
        told = [
            LostGpu(card.uuid or uuids.get(card.index, ""), card.why, card.index, card.name) for card in reading.lost
        ]
        for sample in reading.samples:
            why = "the driver no longer lists this card: reboot the host"
            self._known_gpus[sample.uuid] = LostGpu(sample.uuid, why, sample.index, sample.name)
        present = {sample.uuid for sample in reading.samples} | {card.uuid for card in told}
        gone = [card for card in self._known_gpus.values() if card.uuid not in present]
        self._log_change(GpuMonitorState.OK, "")
        self.publish(GpuSnapshot(GpuMonitorState.OK, self._clock(), reading.samples, (*told, *gone), reading.driver))

    def _set_failed(self, state: GpuMonitorState, words: str) -> GpuMonitorState:
        """The child no longer speaks: the last samples stay as history, unless it is certain that there is no card."""
        if state is GpuMonitorState.OK:  # it asked to be started anew: what it said last still holds
            return state
        why = f"{STATE_REASONS[state]} ({words})" if words else STATE_REASONS[state]
        now = msgspec.structs.replace(self.snapshot(), state=state, why=why)
        if state in {GpuMonitorState.NONE, GpuMonitorState.NO_DRIVER}:
            now = msgspec.structs.replace(now, samples=(), lost=tuple(self._known_gpus.values()))
        self._log_change(state, why)
        self.publish(now)
        return state

    def _log_change(self, state: GpuMonitorState, why: str) -> None:
        if state is not self.snapshot().state:
            log.info("gpu_watch", state=state.value, why=why)
