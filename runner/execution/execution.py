"""One job as a straight line of named steps: attempt, deliver, record, acknowledge, clear away.

Ack last but one, and the container goes last of all: until the record says how it ended, it is the only proof.
Beside the line a heartbeat keeps the message, and looks whether the claim still holds and nobody wants it cancelled.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup
from msgspec import Struct
from msgspec.structs import replace

from bus.interface import BusError, MessageTooLarge, QueueMessage
from runner.assets.port import AssetError, NotPlainFile
from runner.context import RunnerContext
from runner.execution.checkpoint import CheckpointFile
from runner.execution.container_run import ContainerRun, JobAssignment
from runner.execution.fence import ClaimLost, FencedJob, start_delay_s
from runner.execution.outputs import OutputRefused, collect_outputs
from runner.execution.verdict import (
    ClassifiedFailure,
    Done,
    JobCancelled,
    StopReason,
    Verdict,
    blames_gpu,
    make_failure,
)
from runner.slots import Permit
from schemas.events import AttemptReleased, Cancelled, Failed, RecordUnreadable, Succeeded
from schemas.host import RunningExecution
from schemas.ids import JobKey
from schemas.job import AttemptUsage, Job, Output, OutputFile
from schemas.retry_policy import outcome_after_failure
from schemas.status import FINAL_STATUSES, Status

LOG_FILE_NAME = "log.txt"
MIN_NAK_DELAY_S = 1.0  # a nak without a delay skips the queue's own wait: never less than this


class ExecutionPhase(StrEnum):
    """How far the execution is."""

    RUNNING = "running"
    DELIVERING = "delivering"
    RECORDING = "recording"  # from here on the record may be final: no more looking at the claim
    CLEARING = "clearing"  # the message has its answer: another one of this job has to wait until we are gone


class ExecutionResult(Struct, frozen=True):
    """What is to be recorded."""

    verdict: Verdict
    usage: AttemptUsage
    log: str | None = None
    output: Output = Output()
    log_tail: tuple[str, ...] = ()


class Execution:
    """One attempt at one job. `delivery` is its message, None for one that was adopted before it was handed out again.

    `freed` is called when the container has exited and its outputs are safe: what it had may be used from then on.
    Not before: while the edge is away nothing new is to be claimed.
    `verdict` is known in the end; `lost` says that the claim went to somebody else.
    """

    def __init__(
        self, life: RunnerContext, ticket: JobAssignment, delivery: QueueMessage | None, freed: Callable[[], None]
    ) -> None:
        job = ticket.job
        if job.claim is None:
            raise ValueError(f"job {job.id} is not claimed")
        self._context = life
        self._log = life.bind_log(job)
        self._fenced_job = FencedJob(life, job.key, job.round, job.claim)
        self._identity = ticket.identity(life)
        self._folder = life.jobs_dir / self._identity.folder
        self._checkpoint = CheckpointFile(self._folder, self._log)
        self._scope = anyio.CancelScope()
        self._check_requested = anyio.Event()
        self._container_run: ContainerRun | None = None
        self._collect_scope = anyio.CancelScope()
        self._on_freed = freed
        self.assignment = ticket
        self.delivery = delivery
        self.phase = ExecutionPhase.RUNNING
        self.claim_lost = False
        self.verdict: Verdict | None = None

    async def run(self) -> None:
        """Ends when nothing of the attempt is left here."""
        with self._scope:
            if self.assignment.handle is not None:
                await self._checkpoint.load()
            self._container_run = ContainerRun(self._context, self.assignment, self._checkpoint)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._run_heartbeat)
                await self._run_steps(self._container_run)
                tasks.cancel_scope.cancel()
        if self.claim_lost:
            await self._clean_up()

    async def stop(self, intent: StopReason) -> None:
        """Have the container stopped and the job ended, or released, for this reason.

        Its owner may still cancel it while its outputs are read and stored, as that may take long.
        """
        if intent is StopReason.CANCEL:
            self._collect_scope.cancel()
        if self._container_run is not None:
            await self._container_run.request_stop(intent)

    @property
    def handle(self) -> str | None:
        """The container, once there is one."""
        return self._container_run.handle if self._container_run else self.assignment.handle

    def check_now(self) -> None:
        """Look at the record now: somebody says that it has changed."""
        self._check_requested.set()

    async def _run_steps(self, attempt: ContainerRun) -> None:
        try:
            result = await self._deliver(attempt, await attempt.run())
            self.verdict = result.verdict
            if attempt.exit is not None:
                self._on_freed()
            job = await self._record(result)
            await self._acknowledge(job)
            await self._clean_up()
        except ClaimLost as lost:
            self._abandon(lost)

    async def _deliver(self, attempt: ContainerRun, verdict: Verdict) -> ExecutionResult:
        """Outputs and log to the asset store, for as long as that takes."""
        self.phase = ExecutionPhase.DELIVERING
        usage = self._usage(attempt)
        if isinstance(verdict, ClassifiedFailure) and blames_gpu(verdict, started=attempt.exit is not None):
            self.assignment.allocation.mark_faulty(verdict.message)
        log = await self._upload_log(attempt)
        tail = attempt.output_pump.stderr_tail.lines
        if not isinstance(verdict, Done):
            return ExecutionResult(verdict, usage, log, log_tail=tail)
        with self._collect_scope:
            return await self._collect(attempt, ExecutionResult(verdict, usage, log, log_tail=tail))
        return ExecutionResult(JobCancelled(), usage, log)

    async def _collect(self, attempt: ContainerRun, result: ExecutionResult) -> ExecutionResult:
        """With the outputs, once they are in the asset store; or that they cannot be taken."""
        usage, log, tail = result.usage, result.log, result.log_tail
        most_bytes = attempt.disk_limit.bytes if attempt.disk_limit else None
        try:
            found = await anyio.to_thread.run_sync(collect_outputs, attempt.job_dir / "out", most_bytes)
            files = [await self._upload(path, path.name) for path in found.files]
        except OutputRefused as refused:
            return ExecutionResult(make_failure(refused.code, refused.message), usage, log, log_tail=tail)
        except NotPlainFile as error:
            return ExecutionResult(make_failure("output_invalid", str(error)), usage, log, log_tail=tail)
        except AssetError as error:
            return ExecutionResult(make_failure("output_too_large", str(error)), usage, log, log_tail=tail)
        return replace(result, output=Output(tuple(files), found.data), log_tail=())

    async def _upload_log(self, attempt: ContainerRun) -> str | None:
        """A log that the edge refuses is no reason to lose the result."""
        kept = await attempt.output_pump.assemble_log()
        try:
            return (await self._upload(kept, LOG_FILE_NAME)).sha256 if kept else None
        except AssetError as error:
            self._log.warning("log not kept", why=str(error))
            return None

    async def _upload(self, path: Path, name: str) -> OutputFile:
        return await self._context.retry_while_unavailable(
            "upload", partial(self._context.assets.upload, self.assignment.job.owner, path, name)
        )

    def _usage(self, attempt: ContainerRun) -> AttemptUsage:
        job = self.assignment.job
        usage = self.assignment.allocation.usage(anyio.current_time())
        if attempt.run_s is not None:
            usage = replace(usage, run_s=attempt.run_s)
        if job.started_at is not None and job.queued_at is not None:
            usage = replace(usage, queued_s=max(0.0, (job.started_at - job.queued_at).total_seconds()))
        return usage

    async def _record(self, result: ExecutionResult) -> Job:
        self.phase = ExecutionPhase.RECORDING
        try:
            return await self._fenced_job.record(partial(self._final_event, result))
        except MessageTooLarge as error:
            self.verdict = make_failure("output_too_large", f"{error}: write large results into files")
            return await self._fenced_job.record(
                partial(self._final_event, ExecutionResult(self.verdict, result.usage, result.log))
            )

    def _final_event(self, result: ExecutionResult, job: Job) -> Succeeded | Cancelled | AttemptReleased | Failed:
        """What the verdict comes to for the job as it is recorded now."""
        verdict = result.verdict
        if isinstance(verdict, Done):
            return Succeeded(result.output, result.usage, result.log)
        if isinstance(verdict, JobCancelled):
            return Cancelled(result.usage, result.log)
        return outcome_after_failure(
            job,
            verdict.code,
            verdict.message,
            verdict.failure_class,
            at=self._context.now(),
            jitter=self._context.jitter(),
            usage=result.usage,
            log=result.log,
            log_tail=result.log_tail,
        )

    async def _acknowledge(self, job: Job) -> None:
        """A message that was never handed to this life comes again by itself, and is judged by the record."""
        self.phase = ExecutionPhase.CLEARING
        self._log.info(
            "ended", status=job.status, round=job.round, attempt=job.attempt, why=_describe_failure(self.verdict)
        )
        if self.delivery is None:
            return
        if job.status in FINAL_STATUSES:
            await self._context.retry_while_unavailable("acknowledge", self.delivery.ack)
        else:
            wait = max(MIN_NAK_DELAY_S, start_delay_s(job, self._context.now()))
            await self._context.retry_while_unavailable("postpone", partial(self.delivery.nak, wait))

    async def _clean_up(self) -> None:
        """Container and folder go."""
        await self._context.retry_engine_call("remove", self._remove_container)
        await self._context.delete_folder(self._folder)

    async def _remove_container(self) -> None:
        """By its handle, or, where a start was not answered, by its labels."""
        engine, spare = self._context.engine, self.assignment.warm_container
        if self.handle is not None:
            return await engine.remove(self.handle)
        if spare is not None:
            spare.stop_watching()
            await spare.settled.wait()
            if spare.handle is not None:
                await engine.remove(spare.handle)
        for found in await engine.find(self._context.installation, self._context.host):
            if found.identity == self._identity:
                await engine.remove(found.handle)
        return None

    async def _run_heartbeat(self) -> None:
        while True:
            with anyio.move_on_after(self._context.intervals.heartbeat_s):
                await self._check_requested.wait()
            self._check_requested = anyio.Event()
            with suppress(BusError, RecordUnreadable):  # away: the container goes on, the next beat asks again
                await self._extend_message()
                await self._check_claim()

    async def _extend_message(self) -> None:
        """Not once the message has its answer: that would take the answer back."""
        if self.delivery is not None and self.phase is not ExecutionPhase.CLEARING:
            await self.delivery.in_progress()

    async def _check_claim(self) -> None:
        if self.phase in {ExecutionPhase.RECORDING, ExecutionPhase.CLEARING}:
            return
        try:
            job = await self._fenced_job.read_job()
        except ClaimLost as lost:
            if self.phase not in {
                ExecutionPhase.RECORDING,
                ExecutionPhase.CLEARING,
            }:  # else it is our own record that was read
                self._abandon(lost)
            return
        if job.status is Status.CANCELLING:
            await self.stop(StopReason.CANCEL)

    def _abandon(self, why: ClaimLost) -> None:
        self._log.warning("claim lost", why=str(why))
        self.claim_lost = True
        self.phase = ExecutionPhase.CLEARING
        self._scope.cancel()


def _describe_failure(verdict: Verdict | None) -> str | None:
    return f"{verdict.code}: {verdict.message}" if isinstance(verdict, ClassifiedFailure) else None


# MERGED runner/roster.py: The executions of this life, by job and round: launched here, found here, their slots and
# cards given back here.


OnEnded = Callable[[Execution], None]


class RoundKey(NamedTuple):
    """One round of one job: there is one execution for it at a time."""

    key: JobKey
    round: int


class ExecutionRegistry:
    """Executions run in `tasks`. `ended` is told of each that came to its end."""

    def __init__(self, life: RunnerContext, tasks: TaskGroup, ended: OnEnded) -> None:
        self._context = life
        self._tasks = tasks
        self._on_ended = ended
        self._active: dict[RoundKey, Execution] = {}
        self._changed = anyio.Event()

    @property
    def active(self) -> Mapping[RoundKey, Execution]:
        """Everything that runs, or has not been cleared away."""
        return self._active

    def rounds(self, key: JobKey) -> set[int]:
        """The rounds of a job that are here."""
        return {place.round for place in self._active if place.key == key}

    def launch(self, ticket: JobAssignment, permit: Permit, delivery: QueueMessage | None) -> None:
        """Let it run. `permit` and the ticket's cards are given back when it has ended."""
        execution = Execution(self._context, ticket, delivery, partial(self._release_resources, ticket, permit))
        place = RoundKey(ticket.job.key, ticket.job.round)
        if place in self._active:
            raise RuntimeError(f"{place} runs already")
        self._active[place] = execution
        self._tasks.start_soon(self._run, place, execution, permit)

    def running(self) -> tuple[RunningExecution, ...]:
        """As the host's presence shows them."""
        jobs = [execution.assignment.job for execution in self._active.values()]
        return tuple(RunningExecution(job.owner, job.id, job.endpoint, job.round, job.attempt) for job in jobs)

    def _release_resources(self, ticket: JobAssignment, permit: Permit) -> None:
        """Give back what was not given back yet."""
        ticket.allocation.release()
        if permit.is_held:
            permit.release()

    async def wait_until(self, gone: Callable[[Mapping[RoundKey, Execution]], bool]) -> None:
        """Wait until `gone` holds of what is there."""
        while not gone(self._active):
            await self._changed.wait()

    async def _run(self, place: RoundKey, execution: Execution, permit: Permit) -> None:
        """A bug in one execution ends that one: what became of its container is found out by the sweep."""
        try:
            await execution.run()
        except Exception:
            self._context.bind_log(execution.assignment.job).exception("execution failed")
            permit.poison(place.key)
        else:
            self._on_ended(execution)
        finally:
            self._release_resources(execution.assignment, permit)
            del self._active[place]
            self._changed.set()
            self._changed = anyio.Event()
