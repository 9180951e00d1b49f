"""The fake engine: runs async functions instead of containers, for tests of everything above the port."""

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from datetime import datetime
from itertools import count
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup

from runner.engines.launch import prepare_job_dir
from runner.engines.port import (
    ContainerExit,
    ContainerSpec,
    ContainerState,
    ContainerUsage,
    EngineInfo,
    EngineUnavailable,
    FoundContainer,
    GpuInjection,
    ImageStore,
    NoSuchContainer,
    OutputChunk,
    OutputCursor,
    StartFailed,
    complete_length,
)
from schemas.container_protocol import OutputStream
from tests.support.fake_images import image_id

EXIT_KILLED = 137
EXIT_TERMINATED = 143


class EndBySignal(BaseException):
    """Raised by a program to exit as if by a signal: `raise EndBySignal(139)`."""

    def __init__(self, code: int, *, oom_killed: bool = False) -> None:
        super().__init__(code)
        self.code = code
        self.oom_killed = oom_killed


class FakeContainer:
    """A container of the fake. A program writes to it; `term` is set when it is asked to stop.

    `handles_term`: the program reacts to TERM. Otherwise TERM ends it with 143.
    """

    def __init__(self, handle: str, spec: ContainerSpec, now: Callable[[], datetime]) -> None:
        self.handle = handle
        self.spec = spec
        self.state: ContainerState = "created"
        self.handles_term = False
        self.oom_killed = False
        self.usage = ContainerUsage(processes=1, memory_bytes=0)
        self.term = anyio.Event()
        self.exit: ContainerExit | None = None
        self.started_at: datetime | None = None
        self.scope = anyio.CancelScope()
        self._now = now
        self._written: list[tuple[OutputStream, bytes]] = []
        self._held: dict[OutputStream, bytes] = {"stdout": b"", "stderr": b""}
        self._changed = anyio.Event()

    def write(self, data: bytes, stream: OutputStream = "stdout") -> None:
        """Print. As with Docker, a line is seen once it is complete."""
        self._hand_out(stream, data, ended=False)

    def begin(self) -> None:
        """Mark it as running."""
        self.state, self.started_at = "running", self._now()

    def finish(self, code: int, *, oom_killed: bool = False) -> None:
        """Mark it as exited."""
        self.exit = ContainerExit(code, oom_killed or self.oom_killed, self.started_at, self._now())
        self.state = "exited"
        for stream in tuple(self._held):
            self._hand_out(stream, b"", ended=True)

    async def exited(self) -> ContainerExit:
        """Wait for the exit."""
        while self.exit is None:
            await self._changed.wait()
        return self.exit

    async def follow(self, since: OutputCursor | None) -> AsyncGenerator[OutputChunk]:
        """Yield what was written from `since` on, until the exit."""
        offset, index = (since.offset, int(since.position)) if since else (0, 0)
        while True:
            while index < len(self._written):
                stream, data = self._written[index]
                index, offset = index + 1, offset + len(data)
                yield OutputChunk(stream, data, OutputCursor(offset, str(index)))
            if self.exit is not None:
                return
            await self._changed.wait()

    def _hand_out(self, stream: OutputStream, data: bytes, *, ended: bool) -> None:
        held = self._held[stream] + data
        size = complete_length(held, ended=ended)
        if size:
            self._written.append((stream, held[:size]))
        self._held[stream] = held[size:]
        self._changed.set()
        self._changed = anyio.Event()


Program = Callable[[FakeContainer], Awaitable[int]]


class FakeEngine:
    """Runs `programs[spec.image]`; its return value is the exit code.

    Set `next_start_failure` to make the next start fail, `is_unavailable` to make every call raise EngineUnavailable.
    Pass `boxes` to a second engine to play the next runner process. Programs end with the engine that started them.
    """

    name = "memory"
    injection_modes: tuple[GpuInjection, ...] = ()

    def __init__(
        self,
        programs: Mapping[str, Program],
        now: Callable[[], datetime],
        boxes: dict[str, FakeContainer] | None = None,
    ) -> None:
        self.containers = {} if boxes is None else boxes
        self.next_start_failure: StartFailed | None = None
        self.is_unavailable = False
        self.images: ImageStore | None = None
        self.containers_outlive_runner = True
        self._programs = programs
        self._now = now
        self._numbers = count(1)
        self._stack = AsyncExitStack()
        self._tasks: TaskGroup

    async def __aenter__(self) -> Self:
        self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._tasks.cancel_scope.cancel()
        return await self._stack.__aexit__(kind, error, trace)

    async def start(self, spec: ContainerSpec) -> str:
        self._check_available()
        if self.next_start_failure is not None:
            refused, self.next_start_failure = self.next_start_failure, None
            raise refused
        by_id = {image_id(name): name for name in self._programs}  # of an image whose content is the program's name
        program = spec.entrypoint_override[0] if spec.entrypoint_override else by_id.get(spec.image, spec.image)
        if program not in self._programs:
            raise StartFailed("image_missing", f"image {program} is not here: add a program of that name")
        prepare_job_dir(spec.job_dir, (os.geteuid(), os.getegid()), warm=True)
        box = self.create(spec)
        box.begin()
        self._tasks.start_soon(self._run, box, self._programs[program])
        return box.handle

    def create(self, spec: ContainerSpec) -> FakeContainer:
        """Create a container that is never started, as a crash in between leaves one."""
        handle = next(name for number in self._numbers if (name := f"box-{number}") not in self.containers)
        box = FakeContainer(handle, spec, self._now)
        self.containers[box.handle] = box
        return box

    async def output(self, handle: str, since: OutputCursor | None) -> AsyncGenerator[OutputChunk]:
        async for chunk in self._find_started(handle).follow(since):
            self._check_available()
            yield chunk

    async def wait(self, handle: str) -> ContainerExit:
        ended = await self._find_started(handle).exited()
        self._check_available()
        return ended

    async def stop(self, handle: str, grace_s: float) -> None:
        self._check_available()
        box = self.containers.get(handle)
        if box is None or box.state != "running":
            return
        box.term.set()
        if box.handles_term:
            with anyio.move_on_after(grace_s):
                await box.exited()
        if box.exit is None:
            box.finish(EXIT_KILLED if box.handles_term else EXIT_TERMINATED)
        box.scope.cancel()

    async def remove(self, handle: str) -> None:
        self._check_available()
        box = self.containers.pop(handle, None)
        if box is not None and box.state == "running":
            box.finish(EXIT_KILLED)
            box.scope.cancel()

    async def find(self, installation: str, host: str) -> list[FoundContainer]:
        self._check_available()
        found = [FoundContainer(box.handle, box.spec.identity, box.state) for box in self.containers.values()]
        return [one for one in found if (one.identity.installation, one.identity.host) == (installation, host)]

    def set_injection(self, injection: GpuInjection) -> None:
        """Do nothing: there are no GPUs."""

    async def pid(self, handle: str) -> int | None:
        return None

    async def usage(self, handle: str) -> ContainerUsage:
        box = self._find_started(handle)
        if box.exit is not None:
            raise NoSuchContainer(f"{handle} has exited")
        return box.usage

    async def probe(self) -> EngineInfo:
        self._check_available()
        notes = ("runs functions, not containers",)
        return EngineInfo(self.name, "1", isolated=False, notes=notes, has_egress=True)

    def _check_available(self) -> None:
        if self.is_unavailable:
            raise EngineUnavailable("the engine does not answer: the test said so")

    def _find_started(self, handle: str) -> FakeContainer:
        self._check_available()
        box = self.containers.get(handle)
        if box is None or box.state == "created":
            raise NoSuchContainer(f"{handle} does not exist or was never started")
        return box

    async def _run(self, box: FakeContainer, program: Program) -> None:
        with box.scope:
            try:
                code = await program(box)
            except EndBySignal as signal:
                box.finish(signal.code, oom_killed=signal.oom_killed)
            else:
                box.finish(code)
