"""One life of a runner: what it is called, whom it talks to, and how it waits for them when they are away."""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
from msgspec import Struct, field
from structlog.typing import FilteringBoundLogger

from bus.port import Bus, BusError, Denied, StoreFull, Unreachable
from runner.engines.port import Engine, EngineError, EngineGone
from runner.removal import remove_tree
from runner.settings import Pace
from runner.supplies import EdgeAway, NotHeld, Supplies
from runner.uptime import Begun, Uptime
from schemas.events import RecordUnreadable
from schemas.job import Claim, Job

T = TypeVar("T")


class Stuck(EngineGone):
    """The engine is there, and does not do this for this container."""


# What passes when somebody is back, or has put his set-up right. Nothing of it is the job's fault. ALONE is one job's
# trouble, so that one waits alone; the rest is everybody's.
AWAY = (Unreachable, StoreFull, Denied, RecordUnreadable, EdgeAway, EngineGone)
ALONE = (RecordUnreadable, Stuck, NotHeld)
WALKS = 2  # more would keep a slow disk from the jobs, and each may hold runner.disk.DEPTH_LIMIT descriptors


class Outage:
    """Who waits for the edge, the broker or the engine. While anybody does, the runner claims nothing new.

    `suspected` is set when the engine left a call unanswered; runner.enginewatch takes it from there.
    """

    def __init__(self) -> None:
        self._waiting = 0
        self._whys: dict[object, str] = {}
        self._over = anyio.Event()
        self.suspected = anyio.Event()

    async def over(self) -> None:
        """Wait until nobody waits."""
        while self._waiting:
            await self._over.wait()

    @property
    def whys(self) -> tuple[str, ...]:
        """What is not done yet and tried again, each with the reason, once."""
        return tuple(sorted(set(self._whys.values())))

    @contextmanager
    def asking(self) -> Iterator[Callable[[bool, str], None]]:
        """For one who asks again and again: what it is given to say is whether it waits now for what all need, and why
        it asks again.
        """
        waits, mine = False, object()

        def say(now: bool, why: str) -> None:
            nonlocal waits
            self._whys[mine] = why
            if now == waits:
                return
            self._waiting += now - waits
            waits = now
            if not self._waiting:
                self._over.set()
                self._over = anyio.Event()

        try:
            yield say
        finally:
            say(False, "")
            del self._whys[mine]


class Life(Struct, frozen=True, kw_only=True):
    """Everything an execution needs of its host. `now` is UTC; `up` no calendar moves; `jitter` draws from [0, 1).

    `jobs` is the folder that holds a folder for every container. `walks` bounds how many of these are counted at once.
    """

    installation: str
    host: str
    incarnation: str
    jobs: Path
    bus: Bus
    engine: Engine
    supplies: Supplies
    now: Callable[[], datetime]
    up: Callable[[], Uptime]
    jitter: Callable[[], float]
    pace: Pace
    outage: Outage
    log: FilteringBoundLogger
    walks: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(WALKS))

    def claim(self, attempt: int, gpus: Iterable[str] = ()) -> Claim:
        """This life's claim on an attempt, which has these cards."""
        return Claim(self.host, self.incarnation, attempt, ",".join(gpus) or None, self.engine.name)

    def moment(self) -> Begun:
        """This moment, on both clocks."""
        return Begun(self.now(), self.up())

    def log_of(self, job: Job) -> FilteringBoundLogger:
        """The log, with the job's name on every line."""
        return self.log.bind(owner=job.owner, job_id=job.id, trace_id=job.trace_id)

    def away(self, what: str, error: BusError) -> None:
        """Note that `what` did not happen and will be tried again. An outage is weather; the rest is told loudly."""
        tell = self.log.debug if isinstance(error, Unreachable) else self.log.error
        tell("not done", what=what, why=f"{type(error).__name__}: {error}")

    async def erase(self, folder: Path) -> None:
        """Remove a container's folder. What cannot be removed is logged, and is tried again by the next life."""
        try:
            await anyio.to_thread.run_sync(remove_tree, folder)
        except OSError as error:
            self.log.warning("folder not removed", folder=str(folder), why=str(error))

    async def insist(
        self, what: str, ask: Callable[[], Awaitable[T]], told: Callable[[str], None] = lambda _: None
    ) -> T:
        """`ask` until it is answered: a result is never given up because somebody is away.

        `told` hears why it is asked again.
        """
        wait = 0.0
        with self.outage.asking() as waits:
            while True:
                try:
                    return await ask()
                except AWAY as error:
                    if not wait:
                        self.log.warning("waiting", what=what, why=str(error))
                    waits(not isinstance(error, ALONE), f"{what}: {error}")
                    told(str(error))
                    if isinstance(error, EngineGone) and not isinstance(error, Stuck):
                        self.outage.suspected.set()
                wait = min(wait * 2, self.pace.retry_most_s) or self.pace.retry_least_s
                await anyio.sleep(wait)

    async def steadily(self, what: str, ask: Callable[[], Awaitable[T]]) -> T:
        """The same for a call to the engine that has to succeed in the end, whatever it answers meanwhile."""

        async def once() -> T:
            try:
                return await ask()
            except EngineGone:
                raise
            except EngineError as error:
                raise Stuck(str(error)) from error

        return await self.insist(what, once)
