"""One container: inputs staged, started, followed and supervised until its exit, and the exit classified.

To stop it, call `request_stop`. The reason is written to the checkpoint before the stop, because a stopped container
looks like one that crashed. `AttemptTrace` records the steps as spans.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from msgspec import Struct
from msgspec.structs import replace

from bus.health import CLOCK_JUMP_LIMIT_S
from bus.interface import VersionedRecord
from bus.spans import NO_SPANS, OpenSpan, SpanRecorder, span
from runner.assets.port import AssetError, SecretsUnavailable
from runner.context import EngineCallFailed, RunnerContext, StartTime, run_in_background
from runner.endpoints import LocalEndpoint, container_spec
from runner.engines.launch import close_inner_job_dir
from runner.engines.port import (
    ContainerExit,
    ContainerIdentity,
    ContainerSpec,
    EngineError,
    EngineUnavailable,
    FolderMount,
    NoSuchContainer,
)
from runner.execution.disk_usage import DiskWatch, caches_of, disk_limit, measure_disk_use, running_limit
from runner.execution.durable_state import CheckpointFile
from runner.execution.job_files import (
    FetchProgress,
    InvalidJobInput,
    OutputPresence,
    find_output,
    job_timeouts,
    stage_inputs,
    write_job_file,
)
from runner.execution.output_filters import SecretRedactor
from runner.execution.output_pump import OutputPump
from runner.execution.verdict import ExitFacts, StopReason, Verdict, classify_exit
from runner.execution.warm_container import (
    JobFolders,
    WarmContainer,
    WarmState,
    assign_job,
    job_folders,
    write_warm_assignment,
)
from runner.gpu.allocator import GpuAllocation
from schemas.container_protocol import ErrorLine
from schemas.job import Job


class AttemptTrace:
    """Records the steps of an attempt inside one span. A job without a trace context has no spans."""

    def __init__(self, context: RunnerContext, job: Job) -> None:
        self._spans: SpanRecorder = NO_SPANS if job.traceparent is None else context.spans
        self._context, self._job = context, job
        self._attempt: OpenSpan | None = None

    @property
    def traceparent(self) -> str | None:
        """Return the parent for spans of the job's program."""
        return self._attempt.traceparent if self._attempt is not None else self._job.traceparent

    @contextmanager
    def attempt(self) -> Iterator[OpenSpan]:
        """Record the block as the span around all steps."""
        job = self._job
        names = {"job_id": job.id, "owner": job.owner, "endpoint": job.endpoint, "host": self._context.host}
        with span(
            self._spans, "attempt", job.traceparent, **names, job_round=job.round, job_attempt=job.attempt
        ) as opened:
            self._attempt = opened
            yield opened

    def step(self, name: str) -> AbstractContextManager[OpenSpan]:
        """Record the block as a span, as one step of the attempt."""
        return span(self._spans, name, self.traceparent)

    def record_wait(self) -> None:
        """Record the span from the queueing until now, and in it the part before this runner was ready."""
        queued_at, ready_at = self._job.queued_at, self._context.ready_at
        if queued_at is None:
            return
        until = max(self._context.now(), queued_at)  # the clock of this machine may be behind
        queue = self._spans.record("queue", self._job.traceparent, queued_at, until)
        if ready_at is not None and queued_at < ready_at:
            self._spans.record("wake", queue, queued_at, ready_at, host=self._context.host)


class JobAssignment(Struct, frozen=True):
    """A job to run: as claimed, with its endpoint, its GPUs, and the container if it runs already.

    `warm_container` is the warm container that was assigned to the job. `claimed` is the record with the claim, if it
    was just written.
    """

    job: Job
    endpoint: LocalEndpoint
    allocation: GpuAllocation
    handle: str | None = None
    warm_container: WarmContainer | None = None
    claimed: VersionedRecord | None = None

    def identity(self, context: RunnerContext) -> ContainerIdentity:
        """Return the identity of the job's container."""
        return ContainerIdentity(
            installation=context.installation,
            host=context.host,
            owner=self.job.owner,
            job=self.job.id,
            round=self.job.round,
            attempt=self.job.attempt,
            warm_dir=self.warm_container.folder if self.warm_container else "",
        )

    def folders(self, context: RunnerContext) -> JobFolders:
        """Return the folders of the job."""
        number = self.warm_container.number if self.warm_container else 0
        return job_folders(context.jobs_dir / self.identity(context).folder, number)


class ContainerRun:
    """One container of one attempt. `handle` is set once it was started.

    `exit`, `run_s` and the last `error_line` are set once it has ended.
    """

    def __init__(
        self, context: RunnerContext, assignment: JobAssignment, checkpoint: CheckpointFile, trace: AttemptTrace
    ) -> None:
        self._context = context
        self._trace = trace
        self._assignment = assignment
        self._checkpoint = checkpoint
        self._identity = assignment.identity(context)
        self._folders = assignment.folders(context)
        self._preparing = anyio.CancelScope()
        self._stop_requested = anyio.Event()
        self._has_ended = False  # also set if following the container failed, and it may still run
        self._failure: Exception | None = None  # that ended `run`
        self._file_names: Mapping[str, str] = {}  # of the inputs, set after staging
        self._secrets: Mapping[str, str] = {}  # set after staging
        self.job_dir = self._folders.job
        self.stop_reason = checkpoint.current.stop_reason
        self._disk_excess = checkpoint.current.disk_excess
        self.disk_limit = disk_limit(assignment.endpoint.config.resources.disk_mb)
        self.handle = assignment.handle
        self.exit: ContainerExit | None = None
        self.run_s: float | None = None
        self.error_line: ErrorLine | None = None
        self._left_output: OutputPresence | None = None  # of a job whose container runs on
        warm = assignment.warm_container
        self.output_pump = OutputPump(
            context,
            assignment.job,
            checkpoint,
            self._folders.run,
            is_reused=warm is not None and warm.number > 0,
            since=warm.since if warm else None,
        )
        self._timeouts = job_timeouts(assignment.job, assignment.endpoint.config)
        if self.stop_reason is not None:
            self._stop_requested.set()

    async def request_stop(self, reason: StopReason, disk_excess: str | None = None) -> None:
        """Stop the container for this reason. The first reason counts; after the exit, none does.

        `disk_excess` says why the job used too much disk.
        """
        if self.stop_reason is not None or self._has_ended:
            return
        self.stop_reason, self._disk_excess = reason, disk_excess
        await self._checkpoint.update(stop_reason=reason, disk_excess=disk_excess)
        self._preparing.cancel()
        self._stop_requested.set()

    async def run(self) -> None:
        """Stage, start and follow; with a container that exists, begin with following it.

        The caller then has `output_pump` publish the rest of the output, and calls `classify`.

        Errors of inputs, secrets and the start become the verdict, and so does an OSError of the output. An engine that
        does not answer the start is one of them, because it may not have a container: the attempt costs the job
        nothing, and a container that does exist is removed. Once there is a handle, each call is retried instead.
        """
        try:
            if self.handle is None:
                await self._prepare()
            else:
                self._use_secrets(await anyio.to_thread.run_sync(self._context.secrets.read, self._folders.container))
            if self.handle is None and self.stop_reason is None:
                self.handle = await self._start()
            if self.handle is not None:
                start_meter = partial(self._assignment.allocation.job_started, self.handle, anyio.current_time())
                await self._context.retry_while_unavailable("meter", start_meter)
                with self._trace.step("run"):
                    self.exit = await self._supervise(self.handle)
                self.run_s = self._compute_run_s()
        except (AssetError, InvalidJobInput, EngineError, OSError) as error:
            if isinstance(error, EngineUnavailable):
                self._context.outage.engine_suspected.notify()
            self._failure = error
        self._has_ended = True
        self.error_line = self.output_pump.close()

    async def classify(self) -> Verdict:
        """Return what became of the job, after `run`."""
        return classify_exit(await self._exit_facts())

    @property
    def is_container_left(self) -> bool:
        """Return whether the job has ended and its container has not: it waits for another job."""
        return self.exit is not None and self.output_pump.end_code is not None

    @property
    def has_files(self) -> bool:
        """Return whether there may be files to upload."""
        return self._left_output is None or self._left_output.has_files

    async def _exit_facts(self) -> ExitFacts:
        found = self._left_output
        if found is None:
            found = await anyio.to_thread.run_sync(find_output, self.job_dir / "out")
        return ExitFacts(
            stop_reason=self.stop_reason,
            exit=self.exit,
            failure=self._failure,
            xid=self._assignment.allocation.xid,
            error_line=self.error_line,
            has_output=found.has_output,
            disk_excess=self._disk_excess or await self._check_final_disk_use(),
            stderr_end=next(reversed(self.output_pump.stderr_tail.lines), ""),
        )

    async def _check_final_disk_use(self) -> str | None:
        """Return why the ended job left too much; None if it did not.

        Checked once more, because the job may have ended between two checks.
        """
        limit = self.disk_limit
        if self.exit is None or self.stop_reason is not None or limit is None:
            return None
        use = await anyio.to_thread.run_sync(
            measure_disk_use, self._folders.root, limit.entries, limiter=self._context.disk_walk_limiter
        )
        return limit.explain_excess(use)

    async def _prepare(self) -> None:
        job, endpoint, warm = self._assignment.job, self._assignment.endpoint, self._assignment.warm_container
        with self._preparing:
            self._file_names = await self._stage(job, endpoint)
            if warm is not None:
                await warm.wait_for(WarmState.ASSIGNED, WarmState.DETACHED)
                await warm.is_vacated.wait()

    async def _stage(self, job: Job, endpoint: LocalEndpoint) -> Mapping[str, str]:
        """Fetch the inputs, however long that takes; followers of the job see what delays them."""
        progress = FetchProgress(self._context, job)
        stage = partial(stage_inputs, job, endpoint.config, self.job_dir, self._context.assets)
        with self._trace.step("stage"):
            async with run_in_background(progress.run):
                names = await self._context.retry_while_unavailable("fetch input", stage, progress.set_reason)
                if endpoint.config.secrets:
                    fetch = partial(self._fetch_secrets, job, endpoint)
                    secrets = await self._context.retry_while_unavailable("fetch secrets", fetch, progress.set_reason)
                    self._use_secrets(secrets)
        await progress.finish()
        return names

    async def _fetch_secrets(self, job: Job, endpoint: LocalEndpoint) -> Mapping[str, str]:
        """Return the secrets that the endpoint names, and no other that the edge sends."""
        sent = await self._context.assets.fetch_secrets(job.owner, job.id)
        if lacking := [name for name in endpoint.config.secrets if name not in sent]:
            raise SecretsUnavailable(f"the edge does not know yet that {job.endpoint} needs {', '.join(lacking)}")
        return {name: sent[name] for name in endpoint.config.secrets}

    def _use_secrets(self, secrets: Mapping[str, str]) -> None:
        self._secrets = secrets
        self.output_pump.redactor = SecretRedactor(secrets.values())
        if self._assignment.warm_container is not None:
            self._assignment.warm_container.redactor = self.output_pump.redactor

    async def _start(self) -> str:
        """Start the container. Shielded: a start that is cancelled halfway would leave a container without a handle."""
        with anyio.CancelScope(shield=True), self._trace.step("start"):
            if (warm_handle := await self._start_warm()) is not None:
                return warm_handle
            await anyio.to_thread.run_sync(self._write_cold_start)
            began_at = anyio.current_time()
            endpoint, owner = self._assignment.endpoint, self._assignment.job.owner
            mounts = await self._context.mount_folders(endpoint, owner, self._folders.container)
            handle = await self._context.engine.start(self._spec(mounts))
            self._context.metrics.engine_starts.observe(anyio.current_time() - began_at)
            await self._checkpoint.update(**self._start_fields())
        return handle

    async def _start_warm(self) -> str | None:
        """Assign the job to its warm container; return the handle, or None if that died: the job then starts cold.

        All writes before the start line happen in one thread: each change of thread delays the job.
        """
        warm = self._assignment.warm_container
        if warm is None or warm.handle is None:
            return None
        assign = partial(self._assign_warm, warm)
        is_accepted = await self._checkpoint.update_then(assign, **self._start_fields())
        warm.stop_watching()
        if not is_accepted:
            await self._context.engine.remove(warm.handle)
        return warm.handle if is_accepted else None

    def _start_fields(self) -> dict[str, Any]:
        now = self._context.moment()
        return {"started_at": now.at, "started_up": now.uptime}

    def _assign_warm(self, warm: WarmContainer) -> bool:
        try:
            warm.take_files_back()
        except OSError:  # the fault of the last job
            return False
        self._write_job_file()
        if self._secrets and not self._context.secrets.write_for_running(
            self._folders.container, self._secrets, self._folders.root
        ):
            return False
        self.output_pump.since = warm.since  # set when it became ready
        return assign_job(self._folders.container, self._identity, warm.number, warm.since)

    def _write_cold_start(self) -> None:
        """Write the files for a container that starts with its job.

        If it replaces a reused container that died, the number of the job is written too, for recovery.
        """
        warm = self._assignment.warm_container
        if warm is not None and warm.number:
            self.output_pump.since, self.output_pump.is_reused = None, False
            self._folders.container.mkdir(parents=True, exist_ok=True)
            write_warm_assignment(self._folders.container, self._identity, warm.number)
        self._write_job_file()
        if self._secrets:
            self._context.secrets.write(self._folders.container, self._secrets)

    def _write_job_file(self) -> None:
        names, trace = self._file_names, self._trace.traceparent
        write_job_file(self._assignment.job, names, self._timeouts, self.job_dir, self._folders.run, trace)

    def _spec(self, mounts: tuple[FolderMount, ...]) -> ContainerSpec:
        endpoint, allocation = self._assignment.endpoint, self._assignment.allocation
        spec = container_spec(endpoint, self._identity, self.job_dir.resolve(), allocation.uuids, mounts)
        return replace(spec, mps=allocation.mps)

    async def _supervise(self, handle: str) -> ContainerExit | None:
        """Follow the container until its exit, under its limits; None if it is gone without an exit."""
        async with run_in_background(partial(self._enforce_limits, handle)):
            return await self._context.retry_while_unavailable("follow", partial(self._follow_to_exit, handle))

    async def _enforce_limits(self, handle: str) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._stop_when_requested, handle)
            tasks.start_soon(self._enforce_execution_timeout)
            tasks.start_soon(self._enforce_stall_timeout)
            tasks.start_soon(self._enforce_disk_limits)

    def _compute_run_s(self) -> float | None:
        is_warm = self._assignment.warm_container is not None
        return (
            run_s(self.exit, self._checkpoint.current.start_time, self._context.moment(), warm=is_warm)
            if self.exit
            else None
        )

    async def _follow_to_exit(self, handle: str) -> ContainerExit | None:
        try:
            await self.output_pump.follow(handle)
            if self.output_pump.end_code is None:
                return await self._context.engine.wait(handle)
            return await self._end_in_container(self.output_pump.end_code)
        except NoSuchContainer:
            return None
        except EngineUnavailable:
            raise
        except EngineError as error:
            raise EngineCallFailed(str(error)) from error

    async def _end_in_container(self, code: int) -> ContainerExit:
        """Return the end of a job whose container runs on, and take the job's folder from the container."""
        self._left_output = await anyio.to_thread.run_sync(self._close_job_folder)
        start, now = self._checkpoint.current.start_time, self._context.now()
        return ContainerExit(code, started_at=start.at if start else None, finished_at=now)

    def _close_job_folder(self) -> OutputPresence:
        close_inner_job_dir(self.job_dir)
        return find_output(self.job_dir / "out")

    async def _stop_when_requested(self, handle: str) -> None:
        await self._stop_requested.wait()
        # A grace would let the job use even more disk.
        grace_s = 0.0 if self.stop_reason is StopReason.DISK else self._assignment.endpoint.config.timeouts.grace_s
        await self._context.retry_engine_call("stop", partial(self._context.engine.stop, handle, grace_s))

    async def _enforce_execution_timeout(self) -> None:
        """Stop after the timeout.

        It counts from the container's start, also in the next runner process, whatever the wall clock does.
        """
        start, now = self._checkpoint.current.start_time, self._context.moment()
        await anyio.sleep(max(0.0, self._timeouts.execution_s - (elapsed_s(start, now) if start else 0.0)))
        await self.request_stop(StopReason.EXECUTION_TIMEOUT)

    async def _enforce_stall_timeout(self) -> None:
        while True:
            left_s = self.output_pump.last_progress_at + self._timeouts.stall_s - anyio.current_time()
            if self.output_pump.is_blocked:
                left_s = max(left_s, self._context.intervals.tick_s)
            if left_s <= 0:
                return await self.request_stop(StopReason.STALL)
            await anyio.sleep(left_s)

    async def _enforce_disk_limits(self) -> None:
        """Stop the job when it uses too much: of its own folder, or of a cache."""
        limits = [(self._folders.root, self.disk_limit)] if self.disk_limit is not None else []
        if (folders := self._context.folders) is not None:
            found = await anyio.to_thread.run_sync(caches_of, folders.caches, self._folders.container)
            limits += [(cache.folder, running_limit(cache)) for cache in found]
        watches = [DiskWatch(folder, limit, self._context.intervals.disk_walk_s) for folder, limit in limits]
        excess: str | None = None
        while watches and excess is None:
            await anyio.sleep(self._context.intervals.disk_s)
            for watch in watches:
                excess = excess or await anyio.to_thread.run_sync(watch.check, limiter=self._context.disk_walk_limiter)
        if excess is not None:
            await self.request_stop(StopReason.DISK, excess)


def elapsed_s(start: StartTime, now: StartTime) -> float:
    """Return the seconds from `start` to `now`; by the calendar where the monotonic clock does not know them."""
    passed = now.uptime.since(start.uptime) if now.uptime else None
    return max(0.0, (now.at - start.at).total_seconds()) if passed is None else passed


def run_s(exit_: ContainerExit, start: StartTime | None, now: StartTime, *, warm: bool) -> float | None:
    """Return the seconds that a container ran; None where its engine reports no times. `now` is when the exit was seen.

    The engine's dates are exact, even if the exit was not seen, so they are preferred. They are ignored if the calendar
    was set in the meantime, or if they exceed the time that has passed. `warm`: the container was started before its
    job, and its run begins with the job.
    """
    if exit_.started_at is None or exit_.finished_at is None:
        return None
    reported = (exit_.finished_at - (start.at if warm and start else exit_.started_at)).total_seconds()
    passed = now.uptime.since(start.uptime) if start and now.uptime else None
    if start is None or passed is None:
        return max(0.0, reported)
    clock_was_set = abs((now.at - start.at).total_seconds() - passed) > CLOCK_JUMP_LIMIT_S
    return passed if clock_was_set or not 0 <= reported <= passed + CLOCK_JUMP_LIMIT_S else reported
