"""Run one job of an image as a runner does, without a broker and an edge, and then stop a second one.

The context is that of a runner. Its only bus port is a feed that calls a function, and its assets are local files.
"""

import random
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import anyio.to_thread
import structlog
from msgspec import Struct
from msgspec.structs import replace

from bus.interface import Bus
from bus.notifier import Notifier
from runner.assets.container_folders import HostFolders, SecretFiles
from runner.assets.port import AssetError, AssetGone
from runner.claiming.images import HostImages
from runner.claiming.schedulability import HostState, Schedulability, describe_unmet
from runner.claiming.volumes import HostContents, HostVolumes
from runner.claiming.warm_pool import WarmPool
from runner.context import HostContext, OutageGate, RunnerContext, boot_clock, run_in_background
from runner.endpoints import LocalEndpoint
from runner.engines.port import ContainerEngine, EngineInfo
from runner.execution.container_run import AttemptTrace, ContainerRun, JobAssignment
from runner.execution.durable_state import CheckpointFile
from runner.execution.job_files import CollectedOutput, OutputRefused, collect_outputs
from runner.execution.verdict import Done, StopReason, Verdict, output_failure
from runner.execution.warm_container import WarmContainer
from runner.gpu.allocator import GpuAllocation, GpuAllocator, GpuSettings
from runner.gpu.placement import Unplaceable
from runner.gpu.port import GpuMonitor
from runner.settings import RunnerIntervals, WarmSettings
from runner.slots import Slots
from runner.trial.rules import BrokenRule, TrialFacts, find_broken_rules
from schemas.events import FeedMessage, LogMessage, ProgressMessage
from schemas.job import Claim, Job, JobKey, OutputFile, Policy, Status

OWNER, HOST = "you", "here"
STOP_AFTER_S = 2.0  # a job that prints nothing is stopped after this time
LOG_LINES_LIMIT = 100_000  # kept for the rules
WARM_POLL_INTERVAL_S = 0.05
FILL_REPORT_INTERVAL_S = 1.0

OnMessage = Callable[[FeedMessage], None]


class TrialImpossible(Exception):
    """The job cannot run on this machine; the message says why and what to do."""


class TrialReport(NamedTuple):
    """Result of a trial. `output` has the paths of the result files, which exist until the jobs folder is removed.

    `stop` says how the check of SIGTERM ended, for people.
    """

    verdict: Verdict
    exit_code: int | None
    run_s: float | None
    output: CollectedOutput
    broken: tuple[BrokenRule, ...]
    was_warm: bool
    stop: str


class _TrialFeed:
    """The one port of the bus that an attempt uses: it publishes its output there."""

    def __init__(self, on_message: OnMessage) -> None:
        self._on_message = on_message
        self.lines: list[str] = []
        self.progress_count = 0
        self.first_message = anyio.Event()
        self._rest = {"stdout": "", "stderr": ""}

    async def publish(self, key: JobKey, message: FeedMessage) -> None:
        if isinstance(message, ProgressMessage):
            self.progress_count += 1
        if isinstance(message, LogMessage) and len(self.lines) < LOG_LINES_LIMIT:
            *lines, self._rest[message.stream] = (self._rest[message.stream] + message.text).split("\n")
            self.lines += lines
        self.first_message.set()
        self._on_message(message)


class _LocalAssets:
    """Local files by digest, and secrets by name, in place of the edge's."""

    def __init__(self, files: Mapping[str, Path], secrets: Mapping[str, str]) -> None:
        self._files = files
        self._secrets = secrets

    def _find(self, sha256: str) -> Path:
        if sha256 not in self._files:
            raise AssetGone(f"asset {sha256[:12]} is not a local file")
        return self._files[sha256]

    async def prefetch(self, owner: str, sha256: str) -> None:
        self._find(sha256)

    async def filename_suffix(self, owner: str, sha256: str) -> str:
        return self._find(sha256).suffix

    async def stage(self, owner: str, sha256: str, to: Path) -> None:
        await anyio.to_thread.run_sync(shutil.copyfile, self._find(sha256), to)
        await anyio.Path(to).chmod(0o444)

    async def upload(self, owner: str, path: Path, name: str) -> OutputFile:
        raise AssetError("a trial uploads nothing")

    async def fetch_secrets(self, owner: str, job_id: str) -> Mapping[str, str]:
        return self._secrets


class Trial(Struct, frozen=True, kw_only=True):
    """One trial: an endpoint, a valid input, its files by digest, folders for the job, its secrets."""

    endpoint: LocalEndpoint
    input: dict[str, Any]
    files: Mapping[str, Path]
    jobs_dir: Path
    secret_files: SecretFiles
    checks_stop: bool = True
    secrets: Mapping[str, str] = {}
    folders: HostFolders | None = None


def relax_requirements(
    endpoint: LocalEndpoint, gpus: GpuMonitor, engine: EngineInfo
) -> tuple[LocalEndpoint, str | None]:
    """Return the endpoint without labels and GPU models, and what this machine lacks for it; None if nothing.

    They choose the hosts of jobs. An author tries an image on the machine at hand, which has no labels.
    """
    unmet = describe_unmet(endpoint.config, {}, gpus.snapshot(), engine)
    config = replace(endpoint.config, labels={}, gpu=(), compute_capability=None)
    return replace(endpoint, config=config), unmet


async def fill_volumes(
    trial: Trial, engine: ContainerEngine, gpus: GpuMonitor, say: Callable[[str, int], None]
) -> None:
    """Fill the volumes of the endpoint that are not given. Raises TrialImpossible. `say` gets name and percent."""
    if trial.folders is None:
        return
    config = trial.endpoint.config
    wanted = tuple(volume for volume in config.volumes if volume.name not in trial.folders.given)
    if not wanted:
        return
    for volume in wanted:
        if asset := next((file.path for file in volume.files if file.url is None), None):
            raise TrialImpossible(
                f"{asset} of the volume {volume.name} has no `url`, and there is no edge here that has it: "
                f"give a folder with --volume {volume.name}=FOLDER"
            )
    endpoint = replace(trial.endpoint, config=replace(config, volumes=wanted))
    host = _host_context(replace(trial, endpoint=endpoint), gpus, engine)
    context = _runner_context(trial, engine, _TrialFeed(lambda _: None))
    changed = Notifier()
    volumes = HostVolumes(context, host, changed)
    async with run_in_background(volumes.run):
        while not (reports := volumes.reports()) or any(report.state != "ready" for report in reports):
            for report in reports:
                if report.why is not None:
                    raise TrialImpossible(report.why)
                if report.state == "filling":
                    say(", ".join(report.names), report.percent or 0)
            change = changed.next_notification()
            with anyio.move_on_after(FILL_REPORT_INTERVAL_S):
                await change.wait()


async def try_image(trial: Trial, engine: ContainerEngine, gpus: GpuMonitor, on_message: OnMessage) -> TrialReport:
    """Run the job once and report. Raises TrialImpossible. `on_message` gets progress and log."""
    feed = _TrialFeed(on_message)
    host = _host_context(trial, gpus, engine)
    context = _runner_context(trial, engine, feed)
    before = await anyio.to_thread.run_sync(snapshot_folder, trial.endpoint.folder)
    attempt = await _run_attempt(context, host, trial)
    after = await anyio.to_thread.run_sync(snapshot_folder, trial.endpoint.folder)
    stop, survived_s = "not checked", None
    if trial.checks_stop and not isinstance(attempt.verdict, Done):
        stop = "not checked: the job failed"
    elif trial.checks_stop:
        stop, survived_s = await _check_stop(trial, engine, host)
    facts = TrialFacts(
        verdict=attempt.verdict,
        exit=attempt.run.exit,
        has_error_line=attempt.run.error_line is not None,
        progress_count=feed.progress_count,
        lines=tuple(feed.lines),
        names=await anyio.to_thread.run_sync(_list_names, attempt.run.job_dir / "out"),
        changed=tuple(sorted(name for name, _ in set(after.items()) ^ set(before.items()))),
        warm_problem=attempt.warm_problem,
        survived_term_s=survived_s,
    )
    return TrialReport(
        verdict=attempt.verdict,
        exit_code=attempt.run.exit.code if attempt.run.exit else None,
        run_s=attempt.run.run_s,
        output=attempt.output,
        broken=find_broken_rules(facts),
        was_warm=attempt.was_warm,
        stop=stop,
    )


class _Attempt(NamedTuple):
    """One attempt that has ended: its run, and its verdict after its outputs were collected."""

    run: ContainerRun
    verdict: Verdict
    output: CollectedOutput
    was_warm: bool
    warm_problem: str


async def _run_attempt(context: RunnerContext, host: HostContext, trial: Trial) -> _Attempt:
    """Run attempt 1, in a warm container if the endpoint has them, and remove its container."""
    if not trial.endpoint.config.warm:
        return await _run_in(context, trial, _allocate(host, trial.endpoint), None)
    state = HostState()
    contents = HostContents(HostImages(context, host, state.changed), HostVolumes(context, host, state.changed))
    await contents.look()
    endpoint = host.endpoints[trial.endpoint.config.name]  # with its image
    _allocate(host, endpoint).release()  # raises TrialImpossible
    if contents.images.why_unplaceable(endpoint) is not None:  # a cold start says which image is missing
        return await _run_in(context, trial, _allocate(host, endpoint), None)
    schedulability = Schedulability(host.endpoints, host.gpu_allocator, context.jobs_dir, contents, state)
    pool = WarmPool(context, host, schedulability)
    async with run_in_background(pool.run):
        warm, problem = await _take_ready(pool, endpoint)
        await pool.close()  # starts no other one
        allocation = warm.allocation if warm else _allocate(host, trial.endpoint)
        return await _run_in(context, trial, allocation, warm, problem)


async def _take_ready(pool: WarmPool, endpoint: LocalEndpoint) -> tuple[WarmContainer | None, str]:
    """Wait for the warm container; return it, or None and why it did not become ready."""
    while True:
        (report,) = pool.reports()
        if report.ready:
            return pool.take(endpoint, OWNER), ""
        if report.why:
            return None, report.why
        await anyio.sleep(WARM_POLL_INTERVAL_S)


async def _run_in(
    context: RunnerContext, trial: Trial, allocation: GpuAllocation, warm: WarmContainer | None, problem: str = ""
) -> _Attempt:
    run = _make_run(context, trial, allocation, warm)
    try:
        await run.run()
        await run.output_pump.publish_rest()
        verdict = await run.classify()
        output = CollectedOutput({}, ())
        if isinstance(verdict, Done):
            try:
                limit_bytes = run.disk_limit.bytes if run.disk_limit else None
                output = await anyio.to_thread.run_sync(collect_outputs, run.job_dir / "out", limit_bytes)
            except OutputRefused as error:
                verdict = output_failure(error)
        if warm is not None and run.handle != warm.handle:
            problem = "it did not accept the start line"
        return _Attempt(run, verdict, output, warm is not None, problem)
    finally:
        with anyio.CancelScope(shield=True):
            for handle in {run.handle, warm.handle if warm else None} - {None}:
                await context.engine.remove(str(handle))
            allocation.release()


def _make_run(
    context: RunnerContext, trial: Trial, allocation: GpuAllocation, warm: WarmContainer | None, attempt: int = 1
) -> ContainerRun:
    config = trial.endpoint.config
    now = context.now()
    job = Job(
        id="try",
        owner=OWNER,
        endpoint=config.name,
        pool=config.effective_pool,
        status=Status.RUNNING,
        request_digest="",
        input=trial.input,
        policy=Policy(stall_timeout_s=config.timeouts.stall_s),
        attempt=attempt,
        claim=Claim(HOST, context.incarnation, attempt),
        created_at=now,
        started_at=now,
    )
    assignment = JobAssignment(job, trial.endpoint, allocation, warm_container=warm)
    checkpoint = CheckpointFile(context.jobs_dir / assignment.identity(context).folder, context.log)
    return ContainerRun(context, assignment, checkpoint, AttemptTrace(context, assignment.job))


async def _check_stop(trial: Trial, engine: ContainerEngine, host: HostContext) -> tuple[str, float | None]:
    """Run the job again and stop it; return what happened, and for how long it ran on if it had to be killed."""
    feed = _TrialFeed(lambda _: None)
    context = _runner_context(trial, engine, feed)
    allocation = _allocate(host, trial.endpoint)
    run = _make_run(context, trial, allocation, None, attempt=2)
    grace_s = trial.endpoint.config.timeouts.grace_s
    stopped_at: float | None = None

    async def stop_when_it_works() -> None:
        nonlocal stopped_at
        while run.handle is None:  # noqa: ASYNC110 - a start takes milliseconds, and nothing else waits for it
            await anyio.sleep(WARM_POLL_INTERVAL_S)
        with anyio.move_on_after(STOP_AFTER_S):
            await feed.first_message.wait()
        stopped_at = anyio.current_time()
        await run.request_stop(StopReason.CANCEL)

    try:
        async with run_in_background(stop_when_it_works):
            await run.run()
            await run.output_pump.publish_rest()
    finally:
        with anyio.CancelScope(shield=True):
            if run.handle is not None:
                await engine.remove(run.handle)
            allocation.release()
    if run.stop_reason is None or stopped_at is None or run.exit is None:
        return "not checked: the job ended before it could be stopped", None
    took_s = anyio.current_time() - stopped_at
    if run.exit.code == KILLED_EXIT and took_s >= grace_s:
        return f"killed after {took_s:.1f} s", took_s
    return f"stopped after {took_s:.1f} s", None


KILLED_EXIT = 137


def _allocate(host: HostContext, endpoint: LocalEndpoint) -> GpuAllocation:
    """Reserve the GPUs. Raises TrialImpossible."""
    placed = host.gpu_allocator.place(endpoint.config, None)
    if isinstance(placed, Unplaceable):
        raise TrialImpossible(
            f"{endpoint.config.name} cannot start on this machine ({placed.reason.value}): {placed.why}; "
            "free the GPU, or set gpu_optional = true in [resources]"
        )
    return host.gpu_allocator.allocate(placed.uuids, endpoint.config)


def _host_context(trial: Trial, gpus: GpuMonitor, engine: ContainerEngine) -> HostContext:
    async def drop_nothing(_: object) -> None:
        return None

    return HostContext(
        endpoints={trial.endpoint.config.name: trial.endpoint},
        gpu_allocator=GpuAllocator(gpus, GpuSettings(), time.monotonic, engine.pid),
        slots=Slots(1),
        drop_assets=drop_nothing,
        warm=WarmSettings(memory_reserve_mb=0),
    )


def _runner_context(trial: Trial, engine: ContainerEngine, feed: _TrialFeed) -> RunnerContext:
    unused: dict[str, Any] = dict.fromkeys(Bus.__struct_fields__)  # nothing of an attempt before its end uses these
    return RunnerContext(
        installation="try",
        host=HOST,
        incarnation=f"{time.monotonic_ns():x}",
        jobs_dir=trial.jobs_dir,
        bus=Bus(**{**unused, "feed": feed}),
        engine=engine,
        assets=_LocalAssets(trial.files, trial.secrets),
        now=lambda: datetime.now(UTC),
        uptime=boot_clock(),
        jitter=random.random,
        intervals=RunnerIntervals(),
        outage=OutageGate(),
        log=structlog.get_logger("runner"),
        folders=trial.folders,
        secrets=trial.secret_files,
    )


def _list_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else ()


def snapshot_folder(folder: Path) -> Mapping[str, tuple[int, int]]:
    """Return size and time of change of each file below `folder`, by name; hidden folders and caches left out."""
    found: dict[str, tuple[int, int]] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in name.parts):
            stat = path.stat()
            found[name.as_posix()] = (stat.st_size, stat.st_mtime_ns)
    return found
