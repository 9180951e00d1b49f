"""One container's life: inputs staged, started, followed and watched over to its end, judged.

Whoever wants it stopped says so with `intend`; the intent is written down before the stop, because afterwards a stopped
container looks like one that crashed.
"""

import errno
from collections.abc import Mapping
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from msgspec import Struct

from runner.assets.port import AssetError
from runner.context import RunnerContext
from runner.endpoints import LocalEndpoint, container_spec
from runner.engines.port import (
    ContainerExit,
    ContainerIdentity,
    ContainerSpec,
    EngineError,
    EngineUnavailable,
    NoSuchContainer,
    StartFailed,
)
from runner.execution.checkpoint import CheckpointFile
from runner.execution.disk_usage import DiskWatch, disk_limit, measure_disk_use
from runner.execution.output_pump import OutputPump
from runner.execution.outputs import has_output
from runner.execution.staging import FetchProgress, InvalidJobInput, job_timeouts, stage_inputs, write_job_file
from runner.execution.verdict import ClassifiedFailure, ExitFacts, StopReason, Verdict, classify_exit, make_failure
from runner.execution.warm_container import WarmContainer, assign_job
from runner.gpu.allocator import GpuAllocation
from runner.outage import EngineCallFailed
from runner.run_clock import elapsed_s, run_s
from schemas.container_protocol import ErrorLine
from schemas.job import Job

DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})


class JobAssignment(Struct, frozen=True):
    """What is to be run: the job as claimed, what kind it is, its cards, and its container if that runs it already.

    `spare`: the container that was started ahead and is the job's now.
    """

    job: Job
    endpoint: LocalEndpoint
    allocation: GpuAllocation
    handle: str | None = None
    warm_container: WarmContainer | None = None

    def identity(self, life: RunnerContext) -> ContainerIdentity:
        """Whose container it is."""
        return ContainerIdentity(
            installation=life.installation,
            host=life.host,
            owner=self.job.owner,
            job=self.job.id,
            round=self.job.round,
            attempt=self.job.attempt,
            spare=self.warm_container.folder if self.warm_container else "",
        )


class ContainerRun:
    """`handle` is known once there is a container, `exit` and `ran_s` once it has ended."""

    def __init__(self, life: RunnerContext, ticket: JobAssignment, diary: CheckpointFile) -> None:
        self._context = life
        self._assignment = ticket
        self._checkpoint = diary
        self._identity = ticket.identity(life)
        self._folder = life.jobs_dir / self._identity.folder
        self._preparing = anyio.CancelScope()
        self._stop_requested = anyio.Event()
        self._has_ended = False
        self._file_names: Mapping[str, str] = {}  # of its files in in/, once they are there
        self.job_dir = self._folder / "job"
        self.stop_reason = diary.current.intent
        self._disk_excess = diary.current.disk
        self.disk_limit = disk_limit(ticket.endpoint.config.resources.disk_mb)
        self.handle = ticket.handle
        self.exit: ContainerExit | None = None
        self.run_s: float | None = None
        self.output_pump = OutputPump(life, ticket.job, diary, self._folder)
        self._limits = job_timeouts(ticket.job, ticket.endpoint.config)
        if self.stop_reason is not None:
            self._stop_requested.set()

    async def request_stop(self, intent: StopReason, disk: str | None = None) -> None:
        """Have it stopped, for this reason. The first reason counts; once it has ended, none does.

        `disk`: why it used too much of that.
        """
        if self.stop_reason is not None or self._has_ended:
            return
        self.stop_reason, self._disk_excess = intent, disk
        await self._checkpoint.update(intent=intent, disk=disk)
        self._preparing.cancel()
        self._stop_requested.set()

    async def run(self) -> Verdict:
        """From the staging of the inputs to the judgement; with a container that is there, from following it."""
        refused = None
        try:
            if self.handle is None:
                await self._prepare()
            if self.handle is None and self.stop_reason is None:
                self.handle = await self._start()
            if self.handle is not None:
                await self._assignment.allocation.job_started(self.handle, anyio.current_time())
                self.exit = await self._supervise(self.handle)
                self.run_s = self._compute_run_s()
        except StartFailed as error:
            refused = error
        except (AssetError, InvalidJobInput, EngineError, OSError) as error:
            self._has_ended = True
            if isinstance(error, EngineUnavailable):
                self._context.outage.engine_suspected.set()
            await self.output_pump.close()
            return _failure_before_start(error)
        self._has_ended = True
        said = await self.output_pump.close()
        return classify_exit(await self._exit_facts(refused, said))

    async def _exit_facts(self, refused: StartFailed | None, said: ErrorLine | None) -> ExitFacts:
        return ExitFacts(
            stop_reason=self.stop_reason,
            exit=self.exit,
            start_failure=refused,
            xid=self._assignment.allocation.xid,
            error_line=said,
            has_output=await anyio.to_thread.run_sync(has_output, self.job_dir / "out"),
            disk_excess=self._disk_excess or await self._check_final_disk_use(),
        )

    async def _check_final_disk_use(self) -> str | None:
        """Why what an ended job left is too much, or None: it may have ended before the watch looked."""
        limit = self.disk_limit
        if self.exit is None or self.stop_reason is not None or limit is None:
            return None
        use = await anyio.to_thread.run_sync(
            measure_disk_use, self.job_dir, limit.entries, limiter=self._context.disk_walk_limiter
        )
        return limit.explain_excess(use)

    async def _prepare(self) -> None:
        job, kind, spare = self._assignment.job, self._assignment.endpoint, self._assignment.warm_container
        with self._preparing:
            self._file_names = await self._stage(job, kind)
            if spare is not None:
                await spare.settled.wait()

    async def _stage(self, job: Job, kind: LocalEndpoint) -> Mapping[str, str]:
        """Fetch the inputs, for as long as that takes; the job's followers are told what keeps them."""
        prelude = FetchProgress(self._context, job)
        ask = partial(stage_inputs, job, kind.config, self.job_dir, self._context.assets)
        failed: AssetError | InvalidJobInput | OSError | None = None
        names: Mapping[str, str] = {}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(prelude.run)
            try:
                names = await self._context.retry_while_unavailable("fetch input", ask, prelude.set_reason)
            except (AssetError, InvalidJobInput, OSError) as error:
                failed = error  # not through the task group, which would wrap it
            tasks.cancel_scope.cancel()
        if failed is not None:
            raise failed
        await prelude.finish()
        return names

    async def _start(self) -> str:
        """Shielded: a start that is cancelled half-way would leave a container that nobody knows."""
        with anyio.CancelScope(shield=True):
            if (warm := await self._start_warm()) is not None:
                return warm
            await anyio.to_thread.run_sync(self._write_job_file)
            handle = await self._context.engine.start(self._spec())
            await self._checkpoint.update(**self._start_fields())
        return handle

    async def _start_warm(self) -> str | None:
        """The waiting container, if it has the job now; one that died meanwhile is removed, and the job starts cold.

        All that must be written before the line is sent is written in one thread: each hop delays the job.
        """
        spare = self._assignment.warm_container
        if spare is None or spare.handle is None:
            return None
        heard = await self._checkpoint.update_then(self._assign_warm, **self._start_fields())
        spare.stop_watching()
        if not heard:
            await self._context.engine.remove(spare.handle)
        return spare.handle if heard else None

    def _start_fields(self) -> dict[str, Any]:
        now = self._context.moment()
        return {"started_at": now.at, "started_up": now.uptime}

    def _assign_warm(self) -> bool:
        self._write_job_file()
        return assign_job(self._folder, self._identity)

    def _write_job_file(self) -> None:
        write_job_file(self._assignment.job, self._file_names, self._limits, self.job_dir)

    def _spec(self) -> ContainerSpec:
        return container_spec(
            self._assignment.endpoint, self._identity, self.job_dir.resolve(), self._assignment.allocation.uuids
        )

    async def _supervise(self, handle: str) -> ContainerExit | None:
        """Follow it to its end, under its limits; None when it is gone without one."""
        async with anyio.create_task_group() as watch:
            watch.start_soon(self._stop_when_requested, handle)
            watch.start_soon(self._enforce_execution_timeout)
            watch.start_soon(self._enforce_stall_timeout)
            watch.start_soon(self._enforce_disk_limit)
            ended = await self._context.retry_while_unavailable("follow", partial(self._follow_to_exit, handle))
            watch.cancel_scope.cancel()
        return ended

    def _compute_run_s(self) -> float | None:
        ahead = self._assignment.warm_container is not None
        return (
            run_s(self.exit, self._checkpoint.current.start_time, self._context.moment(), ahead=ahead)
            if self.exit
            else None
        )

    async def _follow_to_exit(self, handle: str) -> ContainerExit | None:
        try:
            await self.output_pump.follow(handle)
            return await self._context.engine.wait(handle)
        except NoSuchContainer:
            return None
        except EngineUnavailable:
            raise
        except EngineError as error:
            raise EngineCallFailed(str(error)) from error

    async def _stop_when_requested(self, handle: str) -> None:
        await self._stop_requested.wait()
        # A job that uses too much disk would go on with that for as long as it is waited for.
        grace_s = 0.0 if self.stop_reason is StopReason.DISK else self._assignment.endpoint.config.timeouts.grace_s
        await self._context.retry_engine_call("stop", partial(self._context.engine.stop, handle, grace_s))

    async def _enforce_execution_timeout(self) -> None:
        """Counted from the container's start, also by the next life, whatever the calendar says by then."""
        begun, now = self._checkpoint.current.start_time, self._context.moment()
        await anyio.sleep(max(0.0, self._limits.execution_s - (elapsed_s(begun, now) if begun else 0.0)))
        await self.request_stop(StopReason.EXECUTION_TIMEOUT)

    async def _enforce_stall_timeout(self) -> None:
        while True:
            left_s = self.output_pump.last_progress_at + self._limits.stall_s - anyio.current_time()
            if self.output_pump.is_blocked:
                left_s = max(left_s, self._context.intervals.tick_s)
            if left_s <= 0:
                return await self.request_stop(StopReason.STALL)
            await anyio.sleep(left_s)

    async def _enforce_disk_limit(self) -> None:
        if self.disk_limit is None:
            return
        watch = DiskWatch(self.job_dir, self.disk_limit, self._context.intervals.disk_walk_s)
        why = None
        while why is None:
            await anyio.sleep(self._context.intervals.disk_s)
            why = await anyio.to_thread.run_sync(watch.check, limiter=self._context.disk_walk_limiter)
        await self.request_stop(StopReason.DISK, why)


def _failure_before_start(error: Exception) -> ClassifiedFailure:
    """What a failure before the start means."""
    if isinstance(error, AssetError):
        return make_failure("asset_gone", str(error))
    if isinstance(error, InvalidJobInput):
        return make_failure("bad_input", str(error))
    if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
        return make_failure("disk_full", "the host's disk is full")
    return make_failure("engine_error", str(error))
