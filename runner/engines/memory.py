"""The engine that runs async functions instead of containers: the fake, for tests of everything above the port."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from datetime import datetime
from itertools import count
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup

from runner.engines.cut import whole
from runner.engines.folders import prepare
from runner.engines.port import (
    Chunk,
    EngineGone,
    EngineInfo,
    Exit,
    Found,
    Mark,
    NoSuchContainer,
    Spec,
    StartFailed,
    State,
)
from schemas.container import Stream

KILLED = 137
TERMINATED = 143


class Signalled(BaseException):
    """Raised by a program to end as if by a signal: `raise Signalled(139)`."""

    def __init__(self, code: int, *, oom_killed: bool = False) -> None:
        super().__init__(code)
        self.code = code
        self.oom_killed = oom_killed


class Box:
    """A container of the fake. A program writes to it; `term` is set when it is asked to stop.

    `handles_term` says whether the program does something about that: without, TERM ends it with 143.
    """

    def __init__(self, handle: str, spec: Spec, now: Callable[[], datetime]) -> None:
        self.handle = handle
        self.spec = spec
        self.state: State = "created"
        self.handles_term = False
        self.oom_killed = False
        self.term = anyio.Event()
        self.exit: Exit | None = None
        self.started_at: datetime | None = None
        self.scope = anyio.CancelScope()
        self._now = now
        self._written: list[tuple[Stream, bytes]] = []
        self._held: dict[Stream, bytes] = {"stdout": b"", "stderr": b""}
        self._changed = anyio.Event()

    def write(self, data: bytes, stream: Stream = "stdout") -> None:
        """Print. As with Docker, a line is seen once it is whole."""
        self._hand_out(stream, data, ended=False)

    def begin(self) -> None:
        """It runs from now on."""
        self.state, self.started_at = "running", self._now()

    def finish(self, code: int, *, oom_killed: bool = False) -> None:
        """It has exited."""
        self.exit = Exit(code, oom_killed or self.oom_killed, self.started_at, self._now())
        self.state = "exited"
        for stream in tuple(self._held):
            self._hand_out(stream, b"", ended=True)

    async def exited(self) -> Exit:
        """Waits for the end."""
        while self.exit is None:
            await self._changed.wait()
        return self.exit

    async def follow(self, since: Mark | None) -> AsyncIterator[Chunk]:
        """What was written from `since` on, until the end."""
        offset, index = (since.offset, int(since.position)) if since else (0, 0)
        while True:
            while index < len(self._written):
                stream, data = self._written[index]
                index, offset = index + 1, offset + len(data)
                yield Chunk(stream, data, Mark(offset, str(index)))
            if self.exit is not None:
                return
            await self._changed.wait()

    def _hand_out(self, stream: Stream, data: bytes, *, ended: bool) -> None:
        held = self._held[stream] + data
        size = whole(held, ended=ended)
        if size:
            self._written.append((stream, held[:size]))
        self._held[stream] = held[size:]
        self._changed.set()
        self._changed = anyio.Event()


Program = Callable[[Box], Awaitable[int]]


class MemoryEngine:
    """Runs `programs[spec.image]`; its return value is the exit code.

    Scriptable: set `refuse` to make the next start fail, `gone` to make every call raise EngineGone. `boxes` is the
    world: give it to a second engine to play the runner's next life. Programs end with the engine that started them.
    """

    name = "memory"

    def __init__(
        self, programs: Mapping[str, Program], now: Callable[[], datetime], boxes: dict[str, Box] | None = None
    ) -> None:
        self.boxes = {} if boxes is None else boxes
        self.refuse: StartFailed | None = None
        self.gone = False
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

    async def start(self, spec: Spec) -> str:
        self._answer()
        if self.refuse is not None:
            refused, self.refuse = self.refuse, None
            raise refused
        program = spec.instead[0] if spec.instead else spec.image
        if program not in self._programs:
            raise StartFailed("image_missing", f"image {program} is not here: add a program of that name")
        prepare(spec.job_dir, (os.geteuid(), os.getegid()), warm=True)
        box = self.create(spec)
        box.begin()
        self._tasks.start_soon(self._run, box, self._programs[program])
        return box.handle

    def create(self, spec: Spec) -> Box:
        """A container that was created and never started, as a crash in between leaves one."""
        handle = next(name for number in self._numbers if (name := f"box-{number}") not in self.boxes)
        box = Box(handle, spec, self._now)
        self.boxes[box.handle] = box
        return box

    async def output(self, handle: str, since: Mark | None) -> AsyncIterator[Chunk]:
        async for chunk in self._begun(handle).follow(since):
            self._answer()
            yield chunk

    async def wait(self, handle: str) -> Exit:
        ended = await self._begun(handle).exited()
        self._answer()
        return ended

    async def stop(self, handle: str, grace_s: float) -> None:
        self._answer()
        box = self.boxes.get(handle)
        if box is None or box.state != "running":
            return
        box.term.set()
        if box.handles_term:
            with anyio.move_on_after(grace_s):
                await box.exited()
        if box.exit is None:
            box.finish(KILLED if box.handles_term else TERMINATED)
        box.scope.cancel()

    async def remove(self, handle: str) -> None:
        self._answer()
        box = self.boxes.pop(handle, None)
        if box is not None and box.state == "running":
            box.finish(KILLED)
            box.scope.cancel()

    async def find(self, installation: str, host: str) -> list[Found]:
        self._answer()
        found = [Found(box.handle, box.spec.identity, box.state) for box in self.boxes.values()]
        return [one for one in found if (one.identity.installation, one.identity.host) == (installation, host)]

    async def probe(self) -> EngineInfo:
        self._answer()
        return EngineInfo(self.name, "1", isolated=False, notes=("runs functions, not containers",))

    def _answer(self) -> None:
        if self.gone:
            raise EngineGone("the engine does not answer: the test said so")

    def _begun(self, handle: str) -> Box:
        self._answer()
        box = self.boxes.get(handle)
        if box is None or box.state == "created":
            raise NoSuchContainer(f"{handle} is not here or was never started")
        return box

    async def _run(self, box: Box, program: Program) -> None:
        with box.scope:
            try:
                code = await program(box)
            except Signalled as signal:
                box.finish(signal.code, oom_killed=signal.oom_killed)
            else:
                box.finish(code)
