"""The real `GpuMonitor`: supervises the NVML child and publishes its latest reading.

A driver that hangs, an upgraded library, a missing driver and a dying child are states of the snapshot. Nothing here
raises, and the runner never waits for the driver.
"""

import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from subprocess import DEVNULL, PIPE
from types import TracebackType
from typing import Protocol, Self, cast

import anyio
import msgspec
import structlog
from anyio.abc import ByteReceiveStream, Process, TaskGroup
from anyio.streams.buffered import BufferedByteReceiveStream
from msgspec import Struct

from runner.gpu.assignment import AUTO, AssignedGpus, GpuAssignment, read_assignment
from runner.gpu.nvml_protocol import EXIT_RENEW, LINE_LIMIT_BYTES, STATE_BY_EXIT_CODE, NvmlEnding, NvmlReading, decode
from runner.gpu.port import GpuMonitor, GpuStatePublisher, NoGpuMonitor
from schemas.backoff import Backoff
from schemas.environment import GPU_PREFIXES, build_child_environment
from schemas.gpu import GpuMonitorState, GpuSnapshot, LostGpu


class NvmlChild(Protocol):
    """A child process that writes lines, and that may be stuck in the kernel."""

    async def read_line(self) -> bytes:
        """Return the next line of stdout; raises anyio.EndOfStream or anyio.IncompleteRead at the end."""
        ...

    def kill(self) -> None:
        """Send SIGKILL. A process inside a hung driver goes on until the driver returns."""
        ...

    async def wait(self) -> int:
        """Wait for the exit code, however long the driver takes."""
        ...


SpawnChild = Callable[[], Awaitable[NvmlChild]]
"""Starts a child. Raises OSError."""


class NvmlProcess:
    """`python -m runner.gpu.nvml` with a pipe on its stdout. It shares the runner's stderr, where only a bug writes."""

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
    """Return a function that starts children.

    A child reads all GPUs every `interval_s`, and ends `renew_s` after a GPU was lost. `env` replaces the environment
    that it inherits from the runner.
    """
    inherited = build_child_environment(os.environ, prefixes=GPU_PREFIXES) if env is None else env

    async def spawn() -> NvmlChild:
        argv = [sys.executable, "-m", f"{__package__}.nvml", str(interval_s), str(renew_s)]
        # A session of its own: Ctrl-C in the terminal drains the runner, which needs the GPU monitor until the end.
        process = await anyio.open_process(
            argv, stdin=DEVNULL, stdout=PIPE, stderr=None, env=inherited, start_new_session=True
        )
        return NvmlProcess(process, cast(ByteReceiveStream, process.stdout))  # not None: opened with PIPE

    return spawn


log = structlog.get_logger(__name__)

ChildFailure = tuple[GpuMonitorState, str]
"""Why the child is given up: a state and the error text of the driver."""

STATE_REASONS = {
    GpuMonitorState.NONE: "no NVIDIA GPU found: endpoints that need none, or for which it is optional, still run",
    GpuMonitorState.NO_DRIVER: "the NVIDIA driver is not loaded: run nvidia-smi on the host and fix what it reports",
    GpuMonitorState.MISMATCH: "the NVIDIA driver was upgraded while loaded: reboot the host if this stays",
    GpuMonitorState.HUNG: "the NVIDIA driver does not answer: waiting for it; reboot the host if this stays",
    GpuMonitorState.FAILED: "the GPU monitor died and is restarted",
}
# The longest pause before a new child, in seconds: how soon the state could change without a notification.
RESTART_BACKOFF_LIMIT_S = {
    GpuMonitorState.OK: 0.5,
    GpuMonitorState.NONE: 300.0,
    GpuMonitorState.NO_DRIVER: 30.0,
    GpuMonitorState.MISMATCH: 30.0,
    GpuMonitorState.HUNG: 30.0,
    GpuMonitorState.FAILED: 30.0,
}
REAP_TIMEOUT_S = 1.0  # at shutdown; a killed child that takes longer is left to the kernel


class MonitorTiming(Struct, frozen=True):
    """Timeouts in seconds. The first reading may take long: without persistence mode the driver wakes every GPU."""

    first_reading_timeout_s: float = 30.0
    reading_timeout_s: float = 5.0
    restart_backoff_s: float = 0.5


DEFAULT_TIMING = MonitorTiming()


class NvmlMonitor(GpuStatePublisher):
    """Supervises the NVML child. `clock` gives Unix time; `random` a number in [0, 1), the jitter of restarts.

    `assignment`: the GPUs that are shown; None: all.
    """

    def __init__(  # noqa: PLR0913 - all but the first have one use each
        self,
        spawn: SpawnChild,
        *,
        clock: Callable[[], float],
        random: Callable[[], float],
        timing: MonitorTiming = DEFAULT_TIMING,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        assignment: GpuAssignment | None = None,
    ) -> None:
        super().__init__()
        self._assigned = AssignedGpus(assignment) if assignment is not None else None
        self._spawn, self._clock, self._random, self._sleep = spawn, clock, random, sleep
        self._timing = timing
        self._known_gpus: dict[str, LostGpu] = {}  # every GPU ever seen, as it is reported once it is gone
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
            # Halved, because the jitter lengthens a delay up to twice: together, half of the limit to all of it.
            backoff = Backoff(self._timing.restart_backoff_s / 2, RESTART_BACKOFF_LIMIT_S[state] / 2)
            await self._sleep(backoff.delay_s(failures, self._random()))

    async def _run_child(self) -> GpuMonitorState:
        """Start a child, read its messages until it falls silent or ends, and publish the resulting state."""
        try:
            child = await self._spawn()
        except OSError as error:
            return self._set_failed(GpuMonitorState.FAILED, str(error))
        try:
            state, reason = await self._listen(child)
            child.kill()
            self._set_failed(state, reason)
            # A child in a hung driver ends when the driver returns. A new child would hang too until then.
            await child.wait()
        except anyio.get_cancelled_exc_class():
            child.kill()
            with anyio.move_on_after(REAP_TIMEOUT_S, shield=True):
                await child.wait()
            raise
        return state

    async def _listen(self, child: NvmlChild) -> ChildFailure:
        """Read the child's messages until it ends or is silent for too long."""
        timeout_s, reason = self._timing.first_reading_timeout_s, ""
        while True:
            try:
                with anyio.fail_after(timeout_s):
                    message = decode(await child.read_line())
            except TimeoutError:
                return GpuMonitorState.HUNG, ""
            except (anyio.EndOfStream, anyio.IncompleteRead):
                return await self._classify_exit(child), reason
            except (msgspec.MsgspecError, anyio.DelimiterNotFound) as error:
                return GpuMonitorState.FAILED, f"unreadable: {error}"
            match message:
                case NvmlReading():
                    timeout_s = self._timing.reading_timeout_s
                    self._publish_reading(message)
                case NvmlEnding(text):
                    reason = text
                case event:
                    if self._assigned is None or self._assigned.contains(event.uuid):
                        self.publish_event(event)

    async def _classify_exit(self, child: NvmlChild) -> GpuMonitorState:
        """Return the state for the exit code; a child that cannot exit hangs in the driver."""
        with anyio.move_on_after(self._timing.reading_timeout_s):
            code = await child.wait()
            return self.snapshot().state if code == EXIT_RENEW else STATE_BY_EXIT_CODE.get(code, GpuMonitorState.FAILED)
        return GpuMonitorState.HUNG

    def _publish_reading(self, reading: NvmlReading) -> None:
        """Publish the reading as a snapshot. A GPU that was seen before and is not listed now is lost."""
        samples, lost = reading.samples, reading.lost
        if self._assigned is not None:
            doubt_before = self._assigned.doubt
            samples, lost = self._assigned.select(samples, lost)
            if self._assigned.doubt != doubt_before:
                log.warning("gpu_numbers_in_doubt", reason=self._assigned.doubt)
        uuids = {gpu.index: gpu.uuid for gpu in self._known_gpus.values()}
        reported = [LostGpu(gpu.uuid or uuids.get(gpu.index, ""), gpu.why, gpu.index, gpu.name) for gpu in lost]
        for sample in samples:
            reason = "the driver no longer lists this GPU: reboot the host"
            self._known_gpus[sample.uuid] = LostGpu(sample.uuid, reason, sample.index, sample.name)
        present = {sample.uuid for sample in samples} | {gpu.uuid for gpu in reported}
        missing = [gpu for gpu in self._known_gpus.values() if gpu.uuid not in present]
        self._log_change(GpuMonitorState.OK, "")
        snapshot = GpuSnapshot(GpuMonitorState.OK, self._clock(), samples, (*reported, *missing), reading.driver)
        if self._assigned is not None:
            assigned = self._assigned.describe(len(samples))
            problem = "; ".join(gpu.why for gpu in self._assigned.unknown)
            snapshot = msgspec.structs.replace(snapshot, assigned=assigned, assigned_wrongly=problem)
        self.publish(snapshot)

    def _set_failed(self, state: GpuMonitorState, detail: str) -> GpuMonitorState:
        """Publish a failure of the child. The last samples stay, unless it is certain that there is no GPU."""
        if state is GpuMonitorState.OK:  # it asked for a restart (EXIT_RENEW): its last reading still holds
            return state
        reason = f"{STATE_REASONS[state]} ({detail})" if detail else STATE_REASONS[state]
        snapshot = msgspec.structs.replace(self.snapshot(), state=state, why=reason)
        if state in {GpuMonitorState.NONE, GpuMonitorState.NO_DRIVER}:
            snapshot = msgspec.structs.replace(snapshot, samples=(), lost=tuple(self._known_gpus.values()))
        self._log_change(state, reason)
        self.publish(snapshot)
        return state

    def _log_change(self, state: GpuMonitorState, reason: str) -> None:
        if state is not self.snapshot().state:
            log.info("gpu_monitor_changed", state=state.value, reason=reason)


def open_gpu_monitor(*, watch: bool = True, visible: str = AUTO) -> GpuMonitor:
    """Return the monitor of this machine's GPUs that are assigned to this process. Raises AssignmentInvalid.

    `watch` and `visible`: the settings `[gpu] watch` and `[gpu] visible`.
    """
    if not watch:
        return NoGpuMonitor()
    assignment = read_assignment(visible, os.environ)
    if assignment is not None and not assignment.names:
        return NoGpuMonitor(assignment.source)
    return NvmlMonitor(nvml_spawner(), clock=time.time, random=random.random, assignment=assignment)
