"""One container's life: inputs staged, started, followed and watched over to its end, judged.

Whoever wants it stopped says so with `intend`; the intent is written down before the stop, because afterwards a stopped
container looks like one that crashed.
"""

import errno
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from msgspec import Struct

from runner.cards import Holding
from runner.catalogue import Kind
from runner.disk import DiskWatch, limit_of, measure
from runner.engines.port import (
    EngineError,
    EngineGone,
    Exit,
    Identity,
    Limits,
    NoSuchContainer,
    Spec,
    StartFailed,
)
from runner.journal import Diary
from runner.life import Life, Stuck
from runner.outputs import has_result
from runner.prelude import Prelude
from runner.reporter import Reporter
from runner.spare import Spare, give
from runner.staging import BadInput, stage, tell, timeouts
from runner.supplies import SuppliesError
from runner.uptime import passed_s, ran_s
from runner.verdict import Facts, FailedAs, Intent, Verdict, failed, judge
from schemas.container import ErrorLine
from schemas.job import Job

DISK = frozenset({errno.ENOSPC, errno.EDQUOT})


class Ticket(Struct, frozen=True):
    """What is to be run: the job as claimed, what kind it is, its cards, and its container if that runs it already.

    `spare`: the container that was started ahead and is the job's now.
    """

    job: Job
    kind: Kind
    holding: Holding
    handle: str | None = None
    spare: Spare | None = None

    def identity(self, life: Life) -> Identity:
        """Whose container it is."""
        return Identity(
            installation=life.installation,
            host=life.host,
            owner=self.job.owner,
            job=self.job.id,
            round=self.job.round,
            attempt=self.job.attempt,
            spare=self.spare.folder if self.spare else "",
        )


class Attempt:
    """`handle` is known once there is a container, `exit` and `ran_s` once it has ended."""

    def __init__(self, life: Life, ticket: Ticket, diary: Diary) -> None:
        self._life = life
        self._ticket = ticket
        self._diary = diary
        self._identity = ticket.identity(life)
        self._folder = life.jobs / self._identity.folder
        self._preparing = anyio.CancelScope()
        self._wanted = anyio.Event()
        self._over = False
        self._names: Mapping[str, str] = {}  # of its files in in/, once they are there
        self.job_dir = self._folder / "job"
        self.intent = diary.now.intent
        self._overrun = diary.now.disk
        self.disk_limit = limit_of(ticket.kind.endpoint.resources.disk_mb)
        self.handle = ticket.handle
        self.exit: Exit | None = None
        self.ran_s: float | None = None
        self.reporter = Reporter(life, ticket.job, diary, self._folder)
        self._limits = timeouts(ticket.job, ticket.kind.endpoint)
        if self.intent is not None:
            self._wanted.set()

    async def intend(self, intent: Intent, disk: str | None = None) -> None:
        """Have it stopped, for this reason. The first reason counts; once it has ended, none does.

        `disk`: why it used too much of that.
        """
        if self.intent is not None or self._over:
            return
        self.intent, self._overrun = intent, disk
        await self._diary.note(intent=intent, disk=disk)
        self._preparing.cancel()
        self._wanted.set()

    async def run(self) -> Verdict:
        """From the staging of the inputs to the judgement; with a container that is there, from following it."""
        refused = None
        try:
            if self.handle is None:
                await self._prepare()
            if self.handle is None and self.intent is None:
                self.handle = await self._start()
            if self.handle is not None:
                await self._ticket.holding.started(self.handle, anyio.current_time())
                self.exit = await self._oversee(self.handle)
                self.ran_s = self._ran_s()
        except StartFailed as error:
            refused = error
        except (SuppliesError, BadInput, EngineError, OSError) as error:
            self._over = True
            if isinstance(error, EngineGone):
                self._life.outage.suspected.set()
            await self.reporter.close()
            return _unprepared(error)
        self._over = True
        said = await self.reporter.close()
        return judge(await self._facts(refused, said))

    async def _facts(self, refused: StartFailed | None, said: ErrorLine | None) -> Facts:
        return Facts(
            intent=self.intent,
            exit=self.exit,
            refused=refused,
            xid=self._ticket.holding.xid,
            said=said,
            has_output=await anyio.to_thread.run_sync(has_result, self.job_dir / "out"),
            disk=self._overrun or await self._counted(),
        )

    async def _counted(self) -> str | None:
        """Why what an ended job left is too much, or None: it may have ended before the watch looked."""
        limit = self.disk_limit
        if self.exit is None or self.intent is not None or limit is None:
            return None
        use = await anyio.to_thread.run_sync(measure, self.job_dir, limit.entries, limiter=self._life.walks)
        return limit.exceeded(use)

    async def _prepare(self) -> None:
        job, kind, spare = self._ticket.job, self._ticket.kind, self._ticket.spare
        with self._preparing:
            self._names = await self._staged(job, kind)
            if spare is not None:
                await spare.settled.wait()

    async def _staged(self, job: Job, kind: Kind) -> Mapping[str, str]:
        """Fetch the inputs, for as long as that takes; the job's followers are told what keeps them."""
        prelude = Prelude(self._life, job)
        ask = partial(stage, job, kind.endpoint, self.job_dir, self._life.supplies)
        failed: SuppliesError | BadInput | OSError | None = None
        names: Mapping[str, str] = {}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(prelude.run)
            try:
                names = await self._life.insist("fetch input", ask, prelude.why)
            except (SuppliesError, BadInput, OSError) as error:
                failed = error  # not through the task group, which would wrap it
            tasks.cancel_scope.cancel()
        if failed is not None:
            raise failed
        await prelude.over()
        return names

    async def _start(self) -> str:
        """Shielded: a start that is cancelled half-way would leave a container that nobody knows."""
        with anyio.CancelScope(shield=True):
            if (warm := await self._given_to_spare()) is not None:
                return warm
            await anyio.to_thread.run_sync(self._tell)
            handle = await self._life.engine.start(self._spec())
            await self._diary.note(**self._begins())
        return handle

    async def _given_to_spare(self) -> str | None:
        """The waiting container, if it has the job now; one that died meanwhile is removed, and the job starts cold.

        All that must be written before the line is sent is written in one thread: each hop delays the job.
        """
        spare = self._ticket.spare
        if spare is None or spare.handle is None:
            return None
        heard = await self._diary.note_and(self._give, **self._begins())
        spare.over()
        if not heard:
            await self._life.engine.remove(spare.handle)
        return spare.handle if heard else None

    def _begins(self) -> dict[str, Any]:
        now = self._life.moment()
        return {"started_at": now.at, "started_up": now.up}

    def _give(self) -> bool:
        self._tell()
        return give(self._folder, self._identity)

    def _tell(self) -> None:
        tell(self._ticket.job, self._names, self._limits, self.job_dir)

    def _spec(self) -> Spec:
        return spec_of(self._ticket.kind, self._identity, self.job_dir.resolve(), self._ticket.holding.uuids)

    async def _oversee(self, handle: str) -> Exit | None:
        """Follow it to its end, under its limits; None when it is gone without one."""
        async with anyio.create_task_group() as watch:
            watch.start_soon(self._stop_when_wanted, handle)
            watch.start_soon(self._limit_execution)
            watch.start_soon(self._limit_stall)
            watch.start_soon(self._limit_disk)
            ended = await self._life.insist("follow", partial(self._to_the_end, handle))
            watch.cancel_scope.cancel()
        return ended

    def _ran_s(self) -> float | None:
        ahead = self._ticket.spare is not None
        return ran_s(self.exit, self._diary.now.begun, self._life.moment(), ahead=ahead) if self.exit else None

    async def _to_the_end(self, handle: str) -> Exit | None:
        try:
            await self.reporter.follow(handle)
            return await self._life.engine.wait(handle)
        except NoSuchContainer:
            return None
        except EngineGone:
            raise
        except EngineError as error:
            raise Stuck(str(error)) from error

    async def _stop_when_wanted(self, handle: str) -> None:
        await self._wanted.wait()
        # A job that uses too much disk would go on with that for as long as it is waited for.
        grace_s = 0.0 if self.intent is Intent.DISK else self._ticket.kind.endpoint.timeouts.grace_s
        await self._life.steadily("stop", partial(self._life.engine.stop, handle, grace_s))

    async def _limit_execution(self) -> None:
        """Counted from the container's start, also by the next life, whatever the calendar says by then."""
        begun, now = self._diary.now.begun, self._life.moment()
        await anyio.sleep(max(0.0, self._limits.execution_s - (passed_s(begun, now) if begun else 0.0)))
        await self.intend(Intent.EXECUTION_TIMEOUT)

    async def _limit_stall(self) -> None:
        while True:
            left_s = self.reporter.sign_at + self._limits.stall_s - anyio.current_time()
            if self.reporter.blocked:
                left_s = max(left_s, self._life.pace.tick_s)
            if left_s <= 0:
                return await self.intend(Intent.STALL)
            await anyio.sleep(left_s)

    async def _limit_disk(self) -> None:
        if self.disk_limit is None:
            return
        watch = DiskWatch(self.job_dir, self.disk_limit, self._life.pace.disk_walk_s)
        why = None
        while why is None:
            await anyio.sleep(self._life.pace.disk_s)
            why = await anyio.to_thread.run_sync(watch.look, limiter=self._life.walks)
        await self.intend(Intent.DISK, why)


def spec_of(kind: Kind, identity: Identity, job_dir: Path, gpus: tuple[str, ...]) -> Spec:
    """The container of this kind, on these cards."""
    wants = kind.endpoint.resources
    return Spec(
        identity=identity,
        image=kind.endpoint.image,
        folder=str(kind.folder),
        command=kind.endpoint.process.command if kind.endpoint.process else (),
        job_dir=job_dir,
        limits=Limits(wants.memory_mb, wants.cpus, shm_mb=wants.shm_mb),
        gpus=gpus,
    )


def _unprepared(error: Exception) -> FailedAs:
    """What a failure before the start means."""
    if isinstance(error, SuppliesError):
        return failed("asset_gone", str(error))
    if isinstance(error, BadInput):
        return failed("bad_input", str(error))
    if isinstance(error, OSError) and error.errno in DISK:
        return failed("disk_full", "the host's disk is full")
    return failed("engine_error", str(error))
