"""One attempt as a sequence of named steps: run, deliver outputs, record the end, acknowledge, clean up.

The message is acknowledged only after the record is written, and the container is removed last: until the record says
how it ended, the container is the only proof. In parallel, a heartbeat postpones the redelivery of the message. It also
checks that the claim is still ours and that the job is not cancelled.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup
from msgspec.structs import replace

from bus.interface import BusError, MessageTooLarge, QueueMessage
from bus.notifier import Notifier
from runner.assets.port import AssetError
from runner.context import RunnerContext
from runner.execution.container_run import AttemptTrace, ContainerRun, JobAssignment
from runner.execution.durable_state import CheckpointFile, ClaimLost, FencedJob, start_delay_s
from runner.execution.job_files import OutputRefused, collect_outputs
from runner.execution.verdict import (
    ClassifiedFailure,
    Done,
    ExecutionResult,
    FinalEvent,
    JobCancelled,
    StopReason,
    Verdict,
    blames_gpu,
    output_failure,
    result_too_large,
)
from runner.execution.warm_container import STATES_WITHOUT_START, ContainerReuse
from runner.slots import Permit
from schemas.container_protocol import ExitCode
from schemas.events import RecordUnreadable
from schemas.host import RunningExecution
from schemas.job import FINAL_STATUSES, AttemptUsage, Job, JobKey, Output, OutputFile, Status

LOG_FILE_NAME = "log.txt"
ENDED_JOB_FOLDER = "job"  # in the run folder: where the job's folder goes when its container is kept
CLEAN_UP_DELAY_S = 1.0  # how long message and folder of an ended job may wait for the start of the next one
MIN_NAK_DELAY_S = 1.0  # without a delay the broker delivers the message again at once, ahead of others


class ExecutionPhase(StrEnum):
    """Progress of an execution, which decides how another message of its job is answered."""

    RUNNING = "running"
    UPLOADING = "uploading"
    RECORDING = "recording"  # from here on the record may be final, so the claim is not checked any more
    CLEARING = "clearing"  # the end is recorded; another message of this job waits until this one is cleaned up
    LOST = "lost"  # somebody else has the job; the container is stopped and removed


# After any other one, the program or its GPU may be in a bad state, and its container runs no other job.
CODES_OF_SOUND_PROGRAM = frozenset({ExitCode.DONE, ExitCode.BAD_JOB, ExitCode.BAD_INPUT})
CLAIM_CHECKED_PHASES = frozenset({ExecutionPhase.RUNNING, ExecutionPhase.UPLOADING})
CLEARING_PHASES = frozenset({ExecutionPhase.CLEARING, ExecutionPhase.LOST})
ENDING_PHASES = CLEARING_PHASES | {ExecutionPhase.RECORDING}  # what is left takes moments


class OnFreed(Protocol):
    """Release the slot of an execution, and the GPUs of its container unless that `keeps_gpus` for its next job."""

    def __call__(self, *, keeps_gpus: bool) -> None: ...


class Execution:
    """One attempt at one job.

    - `delivery`: its message; None if recovery found the container before the message came.
    - `on_freed`: called when the container has exited, or the pool has kept it, and its outputs are uploaded. Not
      before, because nothing new is claimed while the edge is away. The next job starts in a container that was kept
      only after the record of this one (`WarmContainer.is_vacated`).
    - `on_ending`: called before that, if the container is left: the slot will be free in a moment.
    - `began_at`: when the job was claimed or adopted, in seconds of the event loop's clock.
    - `verdict`: set at the end.
    - `is_kept`: whether the pool has kept the container for another job, with its GPUs.
    """

    def __init__(
        self,
        context: RunnerContext,
        assignment: JobAssignment,
        delivery: QueueMessage | None,
        on_freed: OnFreed,
        on_ending: Callable[[], None],
    ) -> None:
        job = assignment.job
        if job.claim is None:
            raise ValueError(f"job {job.id} is not claimed")
        self._context = context
        self._log = context.bind_log(job)
        self._fenced_job = FencedJob(context, job.key, job.round, job.claim, assignment.claimed)
        self._identity = assignment.identity(context)
        self._folders = assignment.folders(context)
        self._checkpoint = CheckpointFile(self._folders.run, self._log)
        self._trace = AttemptTrace(context, job)
        self._scope = anyio.CancelScope()
        self._check_requests = Notifier()
        self._next_check = self._check_requests.next_notification()
        self._container_run: ContainerRun | None = None
        self._early_stop: StopReason | None = None  # before `_container_run` existed
        self._collect_scope = anyio.CancelScope()
        self._is_rest_published = anyio.Event()
        self._is_log_ended = anyio.Event()
        self._leak_checked = anyio.Event()
        self._vacated = anyio.Event()  # of the container, once the pool has kept it
        self._reuse: ContainerReuse | None = None
        self._leak: str | None = None
        self._on_freed = on_freed
        self._on_ending = on_ending
        self.began_at = anyio.current_time()
        self.assignment = assignment
        self.delivery = delivery
        self.phase = ExecutionPhase.RUNNING
        self.verdict: Verdict | None = None
        self.is_kept = False

    async def run(self) -> None:
        """Run the attempt; return when nothing of it is left here."""
        if not self.is_adopted:
            self._trace.record_wait()
        with self._trace.attempt() as attempt:
            try:
                await self._run_and_supervise()
            except Exception:
                self._vacated.set()  # after a bug, too, the job that waits for the container must start
                raise
            if isinstance(self.verdict, ClassifiedFailure):
                attempt.fail(self.verdict.code)

    async def _run_and_supervise(self) -> None:
        with self._scope:
            if self.is_adopted:
                await self._checkpoint.load()
            self._container_run = ContainerRun(self._context, self.assignment, self._checkpoint, self._trace)
            if self._early_stop is not None:
                await self._container_run.request_stop(self._early_stop)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._run_heartbeat)
                await self._run_steps(self._container_run, tasks)
                tasks.cancel_scope.cancel()
        if self.phase is ExecutionPhase.LOST:
            await self._clean_up()

    async def stop(self, reason: StopReason) -> None:
        """Stop the container, and end or release the job, for this reason.

        The owner may still cancel the job while its outputs are uploaded, because that may take long.
        """
        if reason is StopReason.CANCEL:
            self._collect_scope.cancel()
        if self._container_run is not None:
            await self._container_run.request_stop(reason)
        else:
            self._early_stop = self._early_stop or reason

    @property
    def is_adopted(self) -> bool:
        """Return whether the container ran before this execution began."""
        return self.assignment.handle is not None

    @property
    def handle(self) -> str | None:
        """Return the handle of the container; None before it was started."""
        return self._container_run.handle if self._container_run else self.assignment.handle

    @property
    def is_clearing(self) -> bool:
        """Return whether the attempt is over here, and only its container is left."""
        return self.phase in CLEARING_PHASES

    def check_now(self) -> None:
        """Check the record at once: it has changed."""
        self._check_requests.notify()

    async def _run_steps(self, container_run: ContainerRun, tasks: TaskGroup) -> None:
        try:
            await container_run.run()
            with self._trace.step("deliver"):
                tasks.start_soon(self._publish_rest, container_run)
                is_left, has_files = container_run.is_container_left, container_run.has_files
                if is_left and not has_files:
                    self._announce_end(container_run, tasks)
                verdict = await container_run.classify()
                result = await self._upload_result(container_run, verdict)
                self.verdict = result.verdict
                if is_left and has_files:  # their upload may take minutes
                    self._announce_end(container_run, tasks)
                if is_left:
                    await self._offer_to_pool(container_run)
                if container_run.exit is not None and (self.is_kept or not is_left):
                    self._on_freed(keeps_gpus=self.is_kept)
                await self._is_rest_published.wait()
            with self._trace.step("record"):
                job = await self._record(result)
                if self.is_kept:
                    self._vacate()
                elif is_left:
                    await self._context.remove_container(self.handle, lambda identity: identity == self._identity)
                    self._on_freed(keeps_gpus=False)
            await self._is_log_ended.wait()
            await self._let_next_job_start()
            await self._acknowledge(job)
            await self._clean_up()
        except ClaimLost as error:
            self._abandon(error)
        finally:
            await container_run.output_pump.close_rest()

    def _announce_end(self, container_run: ContainerRun, tasks: TaskGroup) -> None:
        """Begin what prepares the next job while the end of this one is recorded."""
        tasks.start_soon(self._find_leak, container_run)
        self._on_ending()

    async def _publish_rest(self, container_run: ContainerRun) -> None:
        """Publish the rest of the output while outputs are uploaded, then the end of the log while the end is recorded.

        The edge waits for the end of the log if the record comes first.
        """
        await container_run.output_pump.publish_rest()
        self._is_rest_published.set()
        await container_run.output_pump.publish_log_end()
        self._is_log_ended.set()

    async def _upload_result(self, container_run: ContainerRun, verdict: Verdict) -> ExecutionResult:
        """Upload outputs and log, however long that takes; return them with verdict and usage.

        Before that, mark the GPUs as faulty if the verdict blames them.
        """
        self.phase = ExecutionPhase.UPLOADING
        usage = self._usage(container_run)
        if isinstance(verdict, ClassifiedFailure) and blames_gpu(verdict, started=container_run.exit is not None):
            self.assignment.allocation.mark_faulty(verdict.message)
        log = await self._upload_log(container_run)
        pump = container_run.output_pump
        result = ExecutionResult(verdict, usage, log, log_tail=pump.stderr_tail.lines, metrics=pump.metrics)
        if not isinstance(verdict, Done):
            return result
        with self._collect_scope:
            return await self._collect(container_run, result)
        return replace(result, verdict=JobCancelled(), log_tail=())

    async def _collect(self, container_run: ContainerRun, result: ExecutionResult) -> ExecutionResult:
        """Return the result with the uploaded outputs, or with the failure if they cannot be taken."""
        limit_bytes = container_run.disk_limit.bytes if container_run.disk_limit else None
        try:
            found = await anyio.to_thread.run_sync(collect_outputs, container_run.job_dir / "out", limit_bytes)
            files = [await self._upload(path, path.name) for path in found.files]
            data = container_run.output_pump.redactor.redact_value(found.data)
        except (OutputRefused, AssetError) as error:
            return replace(result, verdict=output_failure(error))
        return replace(result, output=Output(tuple(files), data), log_tail=())

    async def _upload_log(self, container_run: ContainerRun) -> str | None:
        """Upload the log. A log that the edge refuses is no reason to lose the result."""
        log_file = await container_run.output_pump.assemble_log()
        try:
            return (await self._upload(log_file, LOG_FILE_NAME)).sha256 if log_file else None
        except AssetError as error:
            self._log.warning("log_upload_refused", error=str(error))
            return None

    async def _upload(self, path: Path, name: str) -> OutputFile:
        return await self._context.retry_while_unavailable(
            "upload", partial(self._context.assets.upload, self.assignment.job.owner, path, name)
        )

    def _usage(self, container_run: ContainerRun) -> AttemptUsage:
        job = self.assignment.job
        usage = self.assignment.allocation.usage(anyio.current_time())
        if container_run.run_s is not None:
            usage = replace(usage, run_s=container_run.run_s)
        if job.started_at is not None and job.queued_at is not None:
            usage = replace(usage, queued_s=max(0.0, (job.started_at - job.queued_at).total_seconds()))
        return usage

    async def _record(self, result: ExecutionResult) -> Job:
        """Record the end. If the record is too large, leave out metrics and the end of stderr, then the result."""
        self.phase = ExecutionPhase.RECORDING
        try:
            return await self._fenced_job.record(partial(self._final_event, result))
        except MessageTooLarge as error:
            self._log.warning("record_shortened", error=str(error))
        try:
            shortened = replace(result, log_tail=(), metrics=())
            return await self._fenced_job.record(partial(self._final_event, shortened))
        except MessageTooLarge as error:
            self.verdict = result_too_large(error)
            without_output = ExecutionResult(self.verdict, result.usage, result.log)
            return await self._fenced_job.record(partial(self._final_event, without_output))

    def _final_event(self, result: ExecutionResult, job: Job) -> FinalEvent:
        return result.final_event(job, at=self._context.now(), jitter=self._context.jitter())

    async def _acknowledge(self, job: Job) -> None:
        """Acknowledge the message, if it was delivered here. Otherwise it comes later, and the record decides."""
        self.phase = ExecutionPhase.CLEARING
        self._log.info(
            "attempt_ended",
            status=job.status,
            round=job.round,
            attempt=job.attempt,
            error=_describe_failure(self.verdict),
        )
        if self.delivery is None:
            return
        if job.status in FINAL_STATUSES:
            await self._context.retry_while_unavailable("acknowledge", self.delivery.ack)
        else:
            delay_s = max(MIN_NAK_DELAY_S, start_delay_s(job, self._context.now()))
            await self._context.retry_while_unavailable("postpone", partial(self.delivery.nak, delay_s))

    async def _find_leak(self, container_run: ContainerRun) -> None:
        """Look for what the job left in its container. Only a container whose program ended well can be reused."""
        warm, code = self.assignment.warm_container, container_run.exit.code if container_run.exit else None
        if warm is not None and warm.reuse is not None:
            if container_run.stop_reason is None and code in CODES_OF_SOUND_PROGRAM:
                self._leak, self._reuse = await warm.reuse.find_leak(warm), warm.reuse
            else:
                self._log.info("container_not_kept", container=warm.folder, reason=f"stopped, or exit code {code}")
        self._leak_checked.set()

    async def _offer_to_pool(self, container_run: ContainerRun) -> None:
        """Give the container of an ended job back to its pool, which may claim the next job for it now."""
        await self._leak_checked.wait()
        warm, pump = self.assignment.warm_container, container_run.output_pump
        if self._reuse is not None and warm is not None and pump.rest is not None:
            self.is_kept = await self._reuse.keep(warm, pump.rest, self._leak)
            if self.is_kept:
                pump.rest = None  # the pool reads on
                self._vacated = warm.is_vacated

    def _vacate(self) -> None:
        """Let the next job start in a container that was kept.

        Before that job starts, the folder and the secrets of this one are taken from the container.
        """
        warm = self.assignment.warm_container
        if warm is not None and not self._vacated.is_set():
            warm.vacate(self._clear_job_folder)

    async def _let_next_job_start(self) -> None:
        """Wait until the next job, if the container has one, has started: what is left to do here would delay it."""
        warm = self.assignment.warm_container
        if self.is_kept and warm is not None:
            with anyio.move_on_after(CLEAN_UP_DELAY_S):
                await warm.wait_for(*STATES_WITHOUT_START)

    def _clear_job_folder(self) -> None:
        """Move the job's folder to where the container does not see it, and remove the secrets. Blocking.

        `_clean_up` deletes the folder with its new place.
        """
        try:
            self._folders.job.rename(self._folders.run / ENDED_JOB_FOLDER)
        except OSError:  # the container has put something else there
            self._context.remove_folder(self._folders.job)
        self._context.secrets.clear(self._folders.container)

    async def _clean_up(self) -> None:
        """Remove the container, then its folder. Of one that was kept, remove only the folder of this job's run."""
        warm = self.assignment.warm_container
        if self.is_kept and warm is not None:
            self._vacate()
            await anyio.to_thread.run_sync(warm.take_files_back)
            return await self._context.delete_folder(self._folders.run)
        if self.handle is None and warm is not None:
            await warm.is_vacated.wait()
            await warm.detach()
            if warm.handle is not None:
                await self._context.retry_engine_call("remove", partial(self._context.engine.remove, warm.handle))
        await self._context.remove_container(self.handle, lambda identity: identity == self._identity)
        await self._context.delete_folder(self._folders.container)
        return None

    async def _run_heartbeat(self) -> None:
        while True:
            with anyio.move_on_after(self._context.intervals.heartbeat_s):
                await self._next_check.wait()
            self._next_check = self._check_requests.next_notification()
            with suppress(BusError, RecordUnreadable):  # the container goes on, and the next heartbeat tries again
                await self._extend_message()
                await self._check_claim()

    async def _extend_message(self) -> None:
        """Extend the message, but not after it was answered: that would take the answer back."""
        if self.delivery is not None and not self.is_clearing:
            await self.delivery.in_progress()

    async def _check_claim(self) -> None:
        if not self._is_claim_checked():
            return
        try:
            # While the record is read, `_record` may write it. Then it is our own, and a released attempt stays so.
            job = await self._fenced_job.read_job(may_claim_back=self._is_claim_checked)
        except ClaimLost as error:
            if self._is_claim_checked():
                self._abandon(error)
            return
        if job.status is Status.CANCELLING:
            await self.stop(StopReason.CANCEL)

    def _is_claim_checked(self) -> bool:
        return self.phase in CLAIM_CHECKED_PHASES

    def _abandon(self, error: ClaimLost) -> None:
        self._log.warning("claim_lost", error=str(error))
        self.phase = ExecutionPhase.LOST
        self._scope.cancel()


def _describe_failure(verdict: Verdict | None) -> str | None:
    return f"{verdict.code}: {verdict.message}" if isinstance(verdict, ClassifiedFailure) else None


OnEnded = Callable[[Execution], None]


class RoundKey(NamedTuple):
    """One round of one job. There is at most one execution for it."""

    key: JobKey
    round: int


class ExecutionRegistry:
    """The executions of this runner process, by round. They run in `tasks`; `on_ended` gets each that ended."""

    def __init__(self, context: RunnerContext, tasks: TaskGroup, on_ended: OnEnded) -> None:
        self._context = context
        self._tasks = tasks
        self._on_ended = on_ended
        self._active: dict[RoundKey, Execution] = {}
        self._changed = Notifier()

    @property
    def active(self) -> Mapping[RoundKey, Execution]:
        """Return the executions that run or are not cleaned up yet."""
        return self._active

    def rounds(self, key: JobKey) -> set[int]:
        """Return the rounds of a job that have an execution here."""
        return {round_key.round for round_key in self._active if round_key.key == key}

    def launch(self, assignment: JobAssignment, permit: Permit, delivery: QueueMessage | None) -> None:
        """Start an execution. `permit` and the GPUs are released when it has ended."""
        on_freed = partial(self._release_resources, assignment, permit)
        on_ending = partial(permit.announce_release, assignment.endpoint.config.effective_pool)
        execution = Execution(self._context, assignment, delivery, on_freed, on_ending)
        round_key = RoundKey(assignment.job.key, assignment.job.round)
        if round_key in self._active:
            raise RuntimeError(f"{round_key} is already running")
        self._active[round_key] = execution
        self._context.metrics.attempts.inc(assignment.job.endpoint)
        self._tasks.start_soon(self._run, round_key, execution, permit)

    def running(self) -> tuple[RunningExecution, ...]:
        """Return the executions as the heartbeat shows them."""
        jobs = [execution.assignment.job for execution in self._active.values()]
        return tuple(RunningExecution(job.owner, job.id, job.endpoint, job.round, job.attempt) for job in jobs)

    def _release_resources(self, assignment: JobAssignment, permit: Permit, *, keeps_gpus: bool) -> None:
        """Release slot and GPUs, unless that was done before, or the container `keeps_gpus`."""
        if not keeps_gpus:
            assignment.allocation.release()
        if permit.is_held:
            permit.release()

    async def wait_until(self, condition: Callable[[Mapping[RoundKey, Execution]], bool]) -> None:
        """Wait until `condition` holds for the active executions."""
        await self._changed.wait_until(lambda: condition(self._active))

    async def _run(self, round_key: RoundKey, execution: Execution, permit: Permit) -> None:
        """Run an execution. A bug in it ends only that one, and recovery finds out what became of its container.

        Until then the container, which may still run, keeps its GPUs.
        """
        has_crashed = False
        try:
            await execution.run()
        except Exception:
            has_crashed = True
            self._context.bind_log(execution.assignment.job).exception("execution_crashed")
            release = partial(self._release_resources, execution.assignment, permit, keeps_gpus=execution.is_kept)
            permit.poison(round_key.key, release)
        else:
            self._on_ended(execution)
        finally:
            self._release_resources(execution.assignment, permit, keeps_gpus=has_crashed or execution.is_kept)
            del self._active[round_key]
            self._changed.notify()
