"""Warm slots: containers that have loaded and wait, so that a job starts in milliseconds (DESIGN 4).

Each is used once. While a job runs the next one is started only where it fits beside it; else right after. One that
dies while it warms is followed by the next after a pause that doubles, and the host says why. What waits gives way: to
a job of another kind that needs its room, and to the card's owner.
"""

from contextlib import aclosing
from functools import partial
from itertools import count

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup
from msgspec.structs import replace

from runner.attempt import spec_of
from runner.cards import Holding
from runner.catalogue import Kind
from runner.engines.port import WARM_ENV, EngineError, Identity
from runner.gpu.placement import Placed
from runner.life import Life
from runner.means import Means
from runner.pause import Pause
from runner.readiness import Readiness
from runner.slots import memory_free_mb
from runner.spare import PREFIX, Spare
from runner.verdict import OF_THE_IMAGE
from schemas.container import ErrorLine, ExitCode, LineParser, Ready
from schemas.host import Warm


class Standby:
    """What waits, by endpoint. `take` gives one away; `run` sees to it that there is another."""

    def __init__(self, life: Life, means: Means, ready: Readiness) -> None:
        self._life = life
        self._means = means
        self._ready = ready
        self._kinds = {name: kind for name, kind in means.kinds.items() if means.warm.on and kind.endpoint.warm}
        self._spares: list[Spare] = []
        self._pauses = {name: Pause() for name in self._kinds}
        self._numbers = count(1)
        self._changed = anyio.Event()
        self._open = True

    async def run(self) -> None:
        """Keep as many waiting as there should be and can be, without end."""
        async with anyio.create_task_group() as tasks:
            while True:
                if self._open:
                    self._retire()
                    await self._fill(tasks)
                with anyio.move_on_after(self._life.pace.idle_s):
                    await self._changed.wait()

    def look(self) -> None:
        """Something has changed that may make room for one more."""
        self._changed.set()
        self._changed = anyio.Event()

    def take(self, kind: Kind) -> Spare | None:
        """The container that takes the next job of this kind, ready ones first; None: start one."""
        for spare in sorted(self._spares, key=lambda one: not one.ready):
            if spare.kind is kind and not spare.going and self._means.cards.takes(spare.holding, kind.endpoint):
                spare.taken = True
                spare.holding.idle = False
                self._spares.remove(spare)
                return spare
        return None

    async def give_back(self, spare: Spare) -> None:
        """One that was taken got no job after all, and nothing was sent to it: it waits on, if it still can."""
        there = sum(1 for one in self._spares if one.kind is spare.kind)
        if self._open and not spare.unwatched and there < self._means.warm.count:
            spare.taken = False
            spare.holding.idle = True
            self._spares.append(spare)
            return
        spare.over()
        await spare.settled.wait()
        await self._discard(spare)
        self.look()

    async def give_way(self, holding: Holding) -> None:
        """Remove what waits on these cards if the container of `holding` would not fit beside it."""
        if not self._means.cards.crowded(holding):
            return
        going = [spare for spare in self._spares if set(spare.holding.uuids) & set(holding.uuids)]
        for spare in going:
            spare.over()
        for spare in going:
            await spare.gone.wait()

    async def close(self) -> None:
        """Remove all that waits, and start nothing more."""
        self._open = False
        going = tuple(self._spares)
        for spare in going:
            spare.over()
        for spare in going:
            await spare.gone.wait()

    def reports(self) -> tuple[Warm, ...]:
        """As the host's presence shows them."""
        return tuple(self._report(name) for name in self._kinds)

    def _report(self, name: str) -> Warm:
        mine = [spare for spare in self._spares if spare.kind.endpoint.name == name]
        ready = sum(1 for spare in mine if spare.ready)
        pause, now = self._pauses[name], anyio.current_time()
        left_s = round(pause.left_s(now), 1) if pause.lasts(now) else None
        return Warm(name, ready, len(mine) - ready, pause.why or None, left_s)

    def _retire(self) -> None:
        for spare in self._spares:
            if self._means.cards.spoilt(spare.holding):
                spare.over()

    async def _fill(self, tasks: TaskGroup) -> None:
        """Start what is missing, one of each kind at a time: each may take the room that the next one counts on."""
        for name, kind in self._kinds.items():
            there = sum(1 for spare in self._spares if spare.kind is kind)
            if there < self._means.warm.count and not self._pauses[name].lasts(anyio.current_time()):
                holding = await self._room(kind)
                if holding is not None and not self._open:
                    holding.release()
                elif holding is not None:
                    spare = Spare(f"{PREFIX}{self._life.incarnation}-{next(self._numbers)}", kind, holding)
                    self._spares.append(spare)
                    tasks.start_soon(self._keep, spare)

    async def _room(self, kind: Kind) -> Holding | None:
        """The cards for one more, if it fits beside everything that is there."""
        free = await anyio.to_thread.run_sync(memory_free_mb)
        loading = sum(one.kind.endpoint.resources.memory_mb for one in self._spares if not one.ready)
        if free - loading < kind.endpoint.resources.memory_mb + self._means.warm.memory_reserve_mb:
            return None
        placed = await self._ready.place(kind, ahead=True)
        return self._means.cards.hold(placed.uuids, kind.endpoint, idle=True) if isinstance(placed, Placed) else None

    async def _keep(self, spare: Spare) -> None:
        """One of them, from its start until it has its job or is no use any more."""
        pause = self._pauses[spare.kind.endpoint.name]
        why = ""
        with spare.watched:
            try:
                await self._wait(spare)
            except (EngineError, OSError) as error:
                why = str(error) or type(error).__name__
        spare.unwatched = True
        spare.settled.set()
        if why:
            pause.fail(why, anyio.current_time(), self._means.warm.backoff_s, self._means.warm.backoff_most_s)
            self._life.log.warning("warm slot failed", endpoint=spare.kind.endpoint.name, why=why)
        if not spare.taken:
            await self._discard(spare)
        self.look()

    async def _wait(self, spare: Spare) -> None:
        """Start it and follow it while it waits, as long as it may. Raises EngineError when it is no use."""
        folder = self._life.jobs / spare.folder
        mine = Identity(installation=self._life.installation, host=self._life.host, spare=spare.folder)
        spec = spec_of(spare.kind, mine, (folder / "job").resolve(), spare.holding.uuids)
        await anyio.to_thread.run_sync(partial((folder / "job").mkdir, parents=True))
        spare.handle = await self._life.engine.start(replace(spec, env={WARM_ENV: "1"}))
        await spare.holding.waits(spare.handle)
        with anyio.move_on_after(self._means.warm.ready_s) as patience:
            said = await self._follow(spare, spare.handle, patience)
            await self._died(spare, spare.handle, said)
        if not spare.ready:
            raise EngineError(f"not ready after {self._means.warm.ready_s:.0f} s")

    async def _follow(self, spare: Spare, handle: str, patience: anyio.CancelScope) -> ErrorLine | None:
        """Read what it says; its last error line, if it ends. Once it is ready, `patience` counts its age."""
        said: ErrorLine | None = None
        parsers = {"stdout": LineParser("stdout"), "stderr": LineParser("stderr")}
        async with aclosing(self._life.engine.output(handle, None)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                for parsed in parsers[chunk.stream].feed(chunk.data, chunk.mark.offset - len(chunk.data)):
                    if isinstance(parsed.message, ErrorLine):
                        said = parsed.message
                    if isinstance(parsed.message, Ready) and not spare.ready:
                        patience.deadline = anyio.current_time() + self._means.warm.recycle_s
                        self._is_ready(spare)
        return said

    def _is_ready(self, spare: Spare) -> None:
        spare.ready = True
        spare.settled.set()
        self._pauses[spare.kind.endpoint.name].clear()

    async def _died(self, spare: Spare, handle: str, said: ErrorLine | None) -> None:
        """It has exited, which it never should while it waits."""
        ended = await self._life.engine.wait(handle)
        if spare.taken and spare.ready:
            return  # the job's end, seen before we were told that it has its job
        why = f"{said.code}: {said.message}" if said else f"it exited with code {ended.code}"
        if ended.code == ExitCode.GPU_UNUSABLE and (said is None or said.code not in OF_THE_IMAGE):
            spare.holding.erred(why)
        raise EngineError(f"the container died while it waited: {why}")

    async def _discard(self, spare: Spare) -> None:
        """Container and folder go; then its cards are free."""
        if spare in self._spares:
            self._spares.remove(spare)
        await self._life.steadily("remove", partial(self._remove, spare))
        await self._life.erase(self._life.jobs / spare.folder)
        spare.holding.release()
        spare.gone.set()

    async def _remove(self, spare: Spare) -> None:
        """By its handle, or, where a start was not answered, by its folder's name."""
        if spare.handle is not None:
            return await self._life.engine.remove(spare.handle)
        for found in await self._life.engine.find(self._life.installation, self._life.host):
            if found.identity.spare == spare.folder:
                await self._life.engine.remove(found.handle)
        return None
