"""The real `GpuMonitor`: supervises the NVML child and publishes its latest reading of the assigned GPUs.

A driver that hangs, an upgraded library, a missing driver and a dying child are states of the snapshot. Nothing here
raises, and the runner never waits for the driver.

Slurm and Kubernetes tell a job its GPUs by variables. Where they do not confine devices, NVML still lists all GPUs of
the machine. So the runner counts, and gives to its jobs, only the GPUs that these variables name. These rules are pure.

NVML lists the GPUs that this process can open, in the order of their PCI addresses. A number in CUDA_VISIBLE_DEVICES or
GPU_DEVICE_ORDINAL is taken as a position in this list. SLURM_JOB_GPUS and NVIDIA_VISIBLE_DEVICES number all GPUs of the
machine, also those that this process cannot open.

CUDA itself counts from the fastest GPU unless CUDA_DEVICE_ORDER is PCI_BUS_ID. Slurm's numbers are in PCI order. Where
models differ, a number from another source may mean another GPU: `AssignedGpus.doubt` says so.
"""

import os
import random
import re
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from subprocess import DEVNULL, PIPE
from types import TracebackType
from typing import Protocol, Self, cast

import anyio
import msgspec
import structlog
from anyio.abc import ByteReceiveStream, Process, TaskGroup
from anyio.streams.buffered import BufferedByteReceiveStream
from msgspec import Struct
from msgspec.structs import replace

from runner.gpu.port import GpuMonitor, GpuStatePublisher, NoGpuMonitor
from schemas.backoff import Backoff
from schemas.gpu import (
    NVML_EXIT_RENEW,
    NVML_LINE_LIMIT_BYTES,
    STATE_BY_NVML_EXIT_CODE,
    GpuMonitorState,
    GpuSample,
    GpuSnapshot,
    LostGpu,
    NvmlEnding,
    NvmlReading,
    decode_nvml_message,
)
from schemas.outbound_rules import GPU_PREFIXES, build_child_environment

AUTO, ALL = "auto", "all"
SLURM_JOB_VARIABLE, CUDA_ORDER_VARIABLE = "SLURM_JOB_ID", "CUDA_DEVICE_ORDER"
# In the order in which they are read. CUDA's own comes first: it is right with and without confined devices.
CONFINED_VARIABLES = ("CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
MACHINE_VARIABLES = ("SLURM_JOB_GPUS", "NVIDIA_VISIBLE_DEVICES")
NO_GPU_WORDS = frozenset({"", "-1", "none", "NoDevFiles"})
# With these values the container runtime has confined the devices itself, by CDI or by a folder of device names.
_UNRESTRICTED = re.compile(r"(all|void|/.*|.*/.*=.*)?")
_NAME = re.compile(r"\d+(:\d+)?|(GPU|MIG)-[0-9A-Za-z/-]+")

log = structlog.get_logger(__name__)


class AssignmentInvalid(Exception):
    """The assigned GPUs cannot be used; the message says which variable is wrong and what to do."""


class GpuAssignment(Struct, frozen=True):
    """GPUs by number, `GPU:SLICE`, or the beginning of a UUID; no names: no GPU.

    `source` says where they are named. `counts_machine`: numbers count all GPUs of the machine. `order_is_unknown`:
    numbers may count from the fastest GPU, as CUDA does.
    """

    source: str
    names: tuple[str, ...] = ()
    counts_machine: bool = False
    order_is_unknown: bool = False


def read_assignment(setting: str, environ: Mapping[str, str]) -> GpuAssignment | None:
    """Return the assigned GPUs; None where all are. `setting`: `auto`, `all`, or the GPUs. Raises AssignmentInvalid."""
    if setting == ALL:
        return None
    if setting != AUTO:
        return _parse("gpu.visible", setting)
    for variable in (*CONFINED_VARIABLES, *MACHINE_VARIABLES):
        value = environ.get(variable)
        if value is None or (variable == "NVIDIA_VISIBLE_DEVICES" and _UNRESTRICTED.fullmatch(value.strip())):
            continue
        found = _parse(variable, value, counts_machine=variable in MACHINE_VARIABLES)
        is_ordered = environ.get(CUDA_ORDER_VARIABLE) == "PCI_BUS_ID" or bool(environ.get(SLURM_JOB_VARIABLE))
        return replace(found, order_is_unknown=variable == "CUDA_VISIBLE_DEVICES" and not is_ordered)
    if environ.get(SLURM_JOB_VARIABLE):
        return GpuAssignment(f"Slurm gave job {environ[SLURM_JOB_VARIABLE]} no GPU")
    return None


def _parse(name: str, value: str, *, counts_machine: bool = False) -> GpuAssignment:
    source, value = f"{name}={value}", value.strip()
    if value in NO_GPU_WORDS:
        return GpuAssignment(source)
    names = tuple(dict.fromkeys(part.strip() for part in value.split(",")))
    for part in names:
        if not _NAME.fullmatch(part):
            raise AssignmentInvalid(
                f'{source}: "{part}" is not a GPU: give numbers, as in 0,2, or UUIDs, as `nvidia-smi -L` prints them'
            )
    return GpuAssignment(source, names, counts_machine)


class AssignedGpus:
    """Selects the assigned GPUs from each reading.

    The GPU of a name is decided at the first reading that lists it: numbers move when a GPU falls off the bus.
    """

    def __init__(self, assignment: GpuAssignment) -> None:
        self.assignment = assignment
        self.unknown: tuple[LostGpu, ...] = ()
        """The names that have not fitted a GPU of any reading."""
        self.doubt: str | None = None
        """Why a number may mean another GPU, and what to do; None without doubt. Known after the first reading."""
        self._uuids: dict[str, frozenset[str]] = {}
        self._is_confined = False
        self._listed = 0  # GPUs of the machine, as the first reading had them

    def select(
        self, samples: Sequence[GpuSample], lost: Sequence[LostGpu]
    ) -> tuple[tuple[GpuSample, ...], tuple[LostGpu, ...]]:
        """Return the assigned ones of the GPUs that NVML lists. An unknown one counts as lost."""
        gpus = [*((one.index, one.uuid) for one in samples), *((one.index, one.uuid) for one in lost)]
        if not self._listed:
            self._listed = len(gpus)
            self._is_confined = _is_confined(self.assignment, gpus)
            self.doubt = _explain_doubt(self.assignment, {one.name for one in samples})
        if self._is_confined:
            return tuple(samples), tuple(lost)
        names = self.assignment.names
        self._uuids |= {name: found for name in names if name not in self._uuids and (found := _find(name, gpus))}
        own = frozenset[str]().union(*self._uuids.values())
        kept = tuple(one for one in lost if (one.uuid in own if one.uuid else str(one.index) in names))
        answered = {*self._uuids, *(str(one.index) for one in kept)}
        self.unknown = tuple(self._explain_unknown(name, gpus) for name in names if name not in answered)
        return tuple(one for one in samples if one.uuid in own), kept + self.unknown

    def contains(self, uuid: str) -> bool:
        """Return whether this GPU is assigned, or may be: an event may not say which GPU it concerns."""
        return self._is_confined or not uuid or any(uuid in uuids for uuids in self._uuids.values())

    def describe(self, count: int) -> str:
        """Return how many GPUs of this machine are used, and why. `count`: the GPUs that are used."""
        if not self.assignment.names:
            return self.assignment.source
        return f"{count} of {max(self._listed, count)} ({self.assignment.source})"

    def _explain_unknown(self, name: str, gpus: Sequence[tuple[int | None, str]]) -> LostGpu:
        there = ", ".join(f"{index} ({uuid})" if uuid else f"{index}" for index, uuid in gpus) or "none"
        why = f"{self.assignment.source}: there is no GPU {name}; this machine has {there}"
        number = int(name) if name.isdigit() else None
        return LostGpu("" if name[0].isdigit() else name, why, number)


def _explain_doubt(assignment: GpuAssignment, models: Set[str]) -> str | None:
    if not assignment.order_is_unknown or len(models) < 2 or not any(name[0].isdigit() for name in assignment.names):
        return None
    return (
        f"{assignment.source}: numbers are taken in the order of nvidia-smi, but CUDA counts from the fastest GPU, and "
        f"this machine has several models: set {CUDA_ORDER_VARIABLE}=PCI_BUS_ID, or name the GPUs by UUID"
    )


def _is_confined(assignment: GpuAssignment, gpus: Sequence[tuple[int | None, str]]) -> bool:
    """Return whether NVML lists only the assigned GPUs: they have numbers of the machine, and NVML lists as many."""
    if not assignment.counts_machine or not assignment.names:
        return False
    return all(map(str.isdigit, assignment.names)) and len({index for index, _ in gpus}) == len(assignment.names)


def _find(name: str, gpus: Sequence[tuple[int | None, str]]) -> frozenset[str]:
    """Return the UUIDs of a name: several where it is the number of a GPU in MIG mode, none where it fits none."""
    number, _, part = name.partition(":")
    if number.isdigit():
        slices = [uuid for index, uuid in gpus if index == int(number) and uuid]
        return frozenset(slices[int(part) : int(part) + 1] if part else slices)
    uuids = {uuid for _, uuid in gpus}
    found = {name} & uuids or {uuid for uuid in uuids if uuid.startswith(name)}
    return frozenset(found) if len(found) == 1 else frozenset()


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
        return await self._stdout.receive_until(b"\n", NVML_LINE_LIMIT_BYTES)

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
                    message = decode_nvml_message(await child.read_line())
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
            return (
                self.snapshot().state
                if code == NVML_EXIT_RENEW
                else STATE_BY_NVML_EXIT_CODE.get(code, GpuMonitorState.FAILED)
            )
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
