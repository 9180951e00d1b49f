"""One job as a straight line of named steps: attempt, deliver, record, acknowledge, clear away.

Ack last but one, and the container goes last of all: until the record says how it ended, it is the only proof.
Beside the line a heartbeat keeps the message, and looks whether the claim still holds and nobody wants it cancelled.
"""

from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
from msgspec import Struct
from msgspec.structs import replace

from bus.port import BusError, Delivery, TooLarge
from runner.attempt import Attempt, Ticket
from runner.claims import wait_s
from runner.fence import ClaimLost, Fence
from runner.journal import Diary
from runner.life import Life
from runner.outputs import OutputRefused, collect
from runner.supplies import NotPlainFile, SuppliesError
from runner.verdict import Done, FailedAs, Intent, Stopped, Verdict, blames_card, failed
from schemas.events import Cancelled, Failed, RecordUnreadable, Released, Succeeded
from schemas.failures import settle
from schemas.job import File, Job, Output, Usage
from schemas.words import FINAL, Status

LOG_NAME = "log.txt"
AT_ONCE_S = 1.0  # a nak without a delay skips the queue's own wait: never less than this


class Phase(StrEnum):
    """How far the execution is."""

    RUNNING = "running"
    DELIVERING = "delivering"
    RECORDING = "recording"  # from here on the record may be final: no more looking at the claim
    CLEARING = "clearing"  # the message has its answer: another one of this job has to wait until we are gone


class Result(Struct, frozen=True):
    """What is to be recorded."""

    verdict: Verdict
    usage: Usage
    log: str | None = None
    output: Output = Output()
    log_tail: tuple[str, ...] = ()


class Execution:
    """One attempt at one job. `delivery` is its message, None for one that was adopted before it was handed out again.

    `freed` is called when the container has exited and its outputs are safe: what it had may be used from then on.
    Not before: while the edge is away nothing new is to be claimed.
    `verdict` is known in the end; `lost` says that the claim went to somebody else.
    """

    def __init__(self, life: Life, ticket: Ticket, delivery: Delivery | None, freed: Callable[[], None]) -> None:
        job = ticket.job
        if job.claim is None:
            raise ValueError(f"job {job.id} is not claimed")
        self._life = life
        self._log = life.log_of(job)
        self._fence = Fence(life, job.key, job.round, job.claim)
        self._identity = ticket.identity(life)
        self._folder = life.jobs / self._identity.folder
        self._diary = Diary(self._folder, self._log)
        self._scope = anyio.CancelScope()
        self._look = anyio.Event()
        self._attempt: Attempt | None = None
        self._collecting = anyio.CancelScope()
        self._freed = freed
        self.ticket = ticket
        self.delivery = delivery
        self.phase = Phase.RUNNING
        self.lost = False
        self.verdict: Verdict | None = None

    async def run(self) -> None:
        """Ends when nothing of the attempt is left here."""
        with self._scope:
            if self.ticket.handle is not None:
                await self._diary.open()
            self._attempt = Attempt(self._life, self.ticket, self._diary)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._beat)
                await self._line(self._attempt)
                tasks.cancel_scope.cancel()
        if self.lost:
            await self._clear()

    async def stop(self, intent: Intent) -> None:
        """Have the container stopped and the job ended, or released, for this reason.

        Its owner may still cancel it while its outputs are read and stored, as that may take long.
        """
        if intent is Intent.CANCEL:
            self._collecting.cancel()
        if self._attempt is not None:
            await self._attempt.intend(intent)

    @property
    def handle(self) -> str | None:
        """The container, once there is one."""
        return self._attempt.handle if self._attempt else self.ticket.handle

    def look(self) -> None:
        """Look at the record now: somebody says that it has changed."""
        self._look.set()

    async def _line(self, attempt: Attempt) -> None:
        try:
            result = await self._deliver(attempt, await attempt.run())
            self.verdict = result.verdict
            if attempt.exit is not None:
                self._freed()
            job = await self._record(result)
            await self._acknowledge(job)
            await self._clear()
        except ClaimLost as lost:
            self._lose(lost)

    async def _deliver(self, attempt: Attempt, verdict: Verdict) -> Result:
        """Outputs and log to the asset store, for as long as that takes."""
        self.phase = Phase.DELIVERING
        usage = self._usage(attempt)
        if isinstance(verdict, FailedAs) and blames_card(verdict, started=attempt.exit is not None):
            self.ticket.holding.erred(verdict.message)
        log = await self._keep_log(attempt)
        tail = attempt.reporter.tail.lines
        if not isinstance(verdict, Done):
            return Result(verdict, usage, log, log_tail=tail)
        with self._collecting:
            return await self._collect(attempt, Result(verdict, usage, log, log_tail=tail))
        return Result(Stopped(), usage, log)

    async def _collect(self, attempt: Attempt, result: Result) -> Result:
        """With the outputs, once they are in the asset store; or that they cannot be taken."""
        usage, log, tail = result.usage, result.log, result.log_tail
        most_bytes = attempt.disk_limit.bytes if attempt.disk_limit else None
        try:
            found = await anyio.to_thread.run_sync(collect, attempt.job_dir / "out", most_bytes)
            files = [await self._keep(path, path.name) for path in found.files]
        except OutputRefused as refused:
            return Result(failed(refused.code, refused.message), usage, log, log_tail=tail)
        except NotPlainFile as error:
            return Result(failed("output_invalid", str(error)), usage, log, log_tail=tail)
        except SuppliesError as error:
            return Result(failed("output_too_large", str(error)), usage, log, log_tail=tail)
        return replace(result, output=Output(tuple(files), found.data), log_tail=())

    async def _keep_log(self, attempt: Attempt) -> str | None:
        """A log that the edge refuses is no reason to lose the result."""
        kept = await attempt.reporter.keep()
        try:
            return (await self._keep(kept, LOG_NAME)).sha256 if kept else None
        except SuppliesError as error:
            self._log.warning("log not kept", why=str(error))
            return None

    async def _keep(self, path: Path, name: str) -> File:
        return await self._life.insist("upload", partial(self._life.supplies.keep, self.ticket.job.owner, path, name))

    def _usage(self, attempt: Attempt) -> Usage:
        job = self.ticket.job
        usage = self.ticket.holding.usage(anyio.current_time())
        if attempt.ran_s is not None:
            usage = replace(usage, run_s=attempt.ran_s)
        if job.started_at is not None and job.queued_at is not None:
            usage = replace(usage, queued_s=max(0.0, (job.started_at - job.queued_at).total_seconds()))
        return usage

    async def _record(self, result: Result) -> Job:
        self.phase = Phase.RECORDING
        try:
            return await self._fence.apply(partial(self._event, result))
        except TooLarge as error:
            self.verdict = failed("output_too_large", f"{error}: write large results into files")
            return await self._fence.apply(partial(self._event, Result(self.verdict, result.usage, result.log)))

    def _event(self, result: Result, job: Job) -> Succeeded | Cancelled | Released | Failed:
        """What the verdict comes to for the job as it is recorded now."""
        verdict = result.verdict
        if isinstance(verdict, Done):
            return Succeeded(result.output, result.usage, result.log)
        if isinstance(verdict, Stopped):
            return Cancelled(result.usage, result.log)
        return settle(
            job,
            verdict.code,
            verdict.message,
            verdict.row,
            at=self._life.now(),
            jitter=self._life.jitter(),
            usage=result.usage,
            log=result.log,
            log_tail=result.log_tail,
        )

    async def _acknowledge(self, job: Job) -> None:
        """A message that was never handed to this life comes again by itself, and is judged by the record."""
        self.phase = Phase.CLEARING
        self._log.info("ended", status=job.status, round=job.round, attempt=job.attempt, why=_why(self.verdict))
        if self.delivery is None:
            return
        if job.status in FINAL:
            await self._life.insist("acknowledge", self.delivery.done)
        else:
            wait = max(AT_ONCE_S, wait_s(job, self._life.now()))
            await self._life.insist("postpone", partial(self.delivery.later, wait))

    async def _clear(self) -> None:
        """Container and folder go."""
        await self._life.steadily("remove", self._remove)
        await self._life.erase(self._folder)

    async def _remove(self) -> None:
        """By its handle, or, where a start was not answered, by its labels."""
        engine, spare = self._life.engine, self.ticket.spare
        if self.handle is not None:
            return await engine.remove(self.handle)
        if spare is not None:
            spare.over()
            await spare.settled.wait()
            if spare.handle is not None:
                await engine.remove(spare.handle)
        for found in await engine.find(self._life.installation, self._life.host):
            if found.identity == self._identity:
                await engine.remove(found.handle)
        return None

    async def _beat(self) -> None:
        while True:
            with anyio.move_on_after(self._life.pace.heartbeat_s):
                await self._look.wait()
            self._look = anyio.Event()
            with suppress(BusError, RecordUnreadable):  # away: the container goes on, the next beat asks again
                await self._extend()
                await self._see()

    async def _extend(self) -> None:
        """Not once the message has its answer: that would take the answer back."""
        if self.delivery is not None and self.phase is not Phase.CLEARING:
            await self.delivery.extend()

    async def _see(self) -> None:
        if self.phase in {Phase.RECORDING, Phase.CLEARING}:
            return
        try:
            job = await self._fence.look()
        except ClaimLost as lost:
            if self.phase not in {Phase.RECORDING, Phase.CLEARING}:  # else it is our own record that was read
                self._lose(lost)
            return
        if job.status is Status.CANCELLING:
            await self.stop(Intent.CANCEL)

    def _lose(self, why: ClaimLost) -> None:
        self._log.warning("claim lost", why=str(why))
        self.lost = True
        self.phase = Phase.CLEARING
        self._scope.cancel()


def _why(verdict: Verdict | None) -> str | None:
    return f"{verdict.code}: {verdict.message}" if isinstance(verdict, FailedAs) else None
