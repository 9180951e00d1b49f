"""One runner process: the composition root. It opens all that the runner works with, and closes it in reverse."""

import fcntl
import os
import random
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread
import structlog
from structlog.typing import FilteringBoundLogger

from bus.interface import BrokerDenied, BrokerUnreachable, Bus
from bus.open import open_runner
from bus.secret_files import TRAVERSE_ONLY_MODE, make_private_folder
from runner.assets.cache import InputCache
from runner.assets.client import AssetClient, EdgeAssetTransfer, asset_client
from runner.claiming.schedulability import MIB
from runner.context import HostContext, RunnerContext, detect_nothing
from runner.endpoints import LocalEndpoint, load_endpoints
from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.job_user import NoSuchUser, current_user_name, resolve_job_user
from runner.engines.port import EngineError
from runner.engines.process import CannotRunJobs, ProcessEngine
from runner.engines.selection import (
    DOCKER_SOCKET,
    EngineDecision,
    EngineDecisionUnreadable,
    EngineName,
    choose_engine,
    find_docker,
)
from runner.gpu.allocator import GpuAllocator, no_pid
from runner.gpu.monitor import NoGpuMonitor, NvmlMonitor, nvml_spawner
from runner.gpu.port import GpuMonitor
from runner.host.enrollment import HostRemoved, apply_enrollment, is_enrolled, wait_until_removed
from runner.host.gpu_probe import detect_injection as choose_way
from runner.lifecycle import run_lifecycle
from runner.login_sessions import find_logged_in_users
from runner.outage import OutageGate
from runner.run_clock import boot_clock
from runner.settings import RunnerSettings
from runner.slots import Slots

EXTRA_STREAMS = 32  # containers that are followed and run no job: warm ones and GPU probes
JOBKIT_DIR = Path(__file__).resolve().parents[1] / "images" / "jobkit"
FORMER_ENGINE_TIMEOUT_S = 20.0

_log = structlog.get_logger("runner")


class RunnerStartError(Exception):
    """The runner cannot start with these settings; the message says what to change."""


async def serve(
    settings: RunnerSettings, *, say: Callable[[str], None], ready: Callable[[], None] | None = None
) -> None:
    """Run jobs until SIGTERM or SIGINT, then drain. `ready` is called when the runner begins to claim.

    `say` receives one line for people about the engine. If the data folder holds an enrollment (`--join`), it replaces
    the addresses of broker and edge. A broker, an edge or a Docker engine that is away is waited for.

    Raises RunnerStartError, EnrollmentUnreadable, EndpointInvalid, HostRemoved, BrokerDenied.
    """
    settings, enrolled = apply_enrollment(settings), is_enrolled(settings)
    incarnation = secrets.token_hex(8)
    endpoints = load_endpoints(settings.endpoints)
    with _lock_data_dir(settings.data):
        async with AsyncExitStack() as stack:
            edge = await stack.enter_async_context(_open_asset_client(settings))
            selected = await _select_engine(settings, endpoints, say)
            try:
                context, host = await _build_contexts(settings, endpoints, incarnation, edge, selected, stack)
            except BrokerDenied as error:
                raise (HostRemoved(settings.host) if enrolled else error) from error
            context.log.info(
                "runner_started", engine=context.engine.name, endpoints=sorted(endpoints), slots=settings.slots
            )
            await _run_until_stopped(context, host, ready or (lambda: None), edge if enrolled else None)


class _SelectedEngine(NamedTuple):
    """The engine. `run_as` is the user that jobs of the process engine run as."""

    engine: DockerEngine | ProcessEngine
    run_as: str | None


async def _build_contexts(  # noqa: PLR0913, PLR0917 - everything read and opened before
    settings: RunnerSettings,
    endpoints: Mapping[str, LocalEndpoint],
    incarnation: str,
    client: AssetClient,
    selected: _SelectedEngine,
    stack: AsyncExitStack,
) -> tuple[RunnerContext, HostContext]:
    """Open everything that the runner works with on `stack`."""
    log = structlog.get_logger("runner").bind(host=settings.host, incarnation=incarnation)
    engine = selected.engine
    await stack.enter_async_context(engine)
    gpus = await stack.enter_async_context(_open_gpu_monitor(settings))
    reserve = settings.gpu.placement.disk_reserve_mb * MIB
    cache = InputCache(settings.data / "cache", settings.cache_bytes, client, reserve_bytes=reserve)
    context = RunnerContext(
        installation=settings.installation,
        host=settings.host,
        incarnation=incarnation,
        jobs_dir=settings.data / "jobs",
        bus=await stack.enter_async_context(_connect_bus(settings, log)),
        engine=engine,
        assets=EdgeAssetTransfer(cache, client),
        now=_utc_now,
        uptime=boot_clock(),
        jitter=random.random,
        intervals=settings.pace,
        outage=OutageGate(),
        log=log,
    )
    host = HostContext(
        endpoints=endpoints,
        gpu_allocator=GpuAllocator(
            gpus, settings.gpu, time.monotonic, engine.pid if isinstance(engine, ProcessEngine) else no_pid
        ),
        slots=Slots(settings.slots),
        drop_assets=cache.drop,
        containers_outlive_runner=engine.name != ProcessEngine.name,
        detect_injection=partial(choose_way, engine=engine) if isinstance(engine, DockerEngine) else detect_nothing,
        run_as=selected.run_as,
        warm=settings.warm,
        grace_s=settings.grace_s,
        poweroff=settings.poweroff,
        dead_man=settings.dead_man,
        find_logged_in_users=find_logged_in_users,
        is_edge_alive=client.is_alive,
    )
    return context, host


async def _run_until_stopped(
    context: RunnerContext, host: HostContext, ready: Callable[[], None], edge: AssetClient | None
) -> None:
    """Run until a signal arrives, or until the edge of an enrolled host does not know it any more.

    Raises HostRemoved in the second case.
    """
    stop = anyio.Event()
    removed = False
    async with anyio.create_task_group() as tasks:

        async def stop_on_signal() -> None:
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for _ in signals:
                    stop.set()

        async def stop_on_removal(edge: AssetClient) -> None:
            nonlocal removed
            await wait_until_removed(context.bus.health, edge)
            removed = True
            stop.set()

        tasks.start_soon(stop_on_signal)
        if edge is not None:
            tasks.start_soon(stop_on_removal, edge)
        await run_lifecycle(context, host, stop, ready)
        tasks.cancel_scope.cancel()
    if removed:
        raise HostRemoved(context.host)


@asynccontextmanager
async def _open_asset_client(settings: RunnerSettings) -> AsyncIterator[AssetClient]:
    edge = settings.edge
    try:
        async with asset_client(edge.url, edge.key, pin=edge.pin) as client:
            yield client
    except FileNotFoundError as error:
        raise RunnerStartError(
            f"{edge.pin} does not exist: join again with a new token, or correct edge.pin"
        ) from error


def _open_gpu_monitor(settings: RunnerSettings) -> GpuMonitor:
    return NvmlMonitor(nvml_spawner(), clock=time.time, random=random.random) if settings.gpu.watch else NoGpuMonitor()


@asynccontextmanager
async def _connect_bus(settings: RunnerSettings, log: FilteringBoundLogger) -> AsyncIterator[Bus]:
    """Connect to the broker; retry until it answers, because the host may be up first."""
    wait = settings.pace.retry_least_s
    async with AsyncExitStack() as stack:
        while True:
            try:
                bus = await stack.enter_async_context(open_runner(settings.broker))
                break
            except BrokerUnreachable as error:
                log.warning("broker_unavailable", error=str(error))
                await anyio.sleep(wait)
                wait = min(2 * wait, settings.pace.retry_most_s)
        yield bus


async def _select_engine(
    settings: RunnerSettings, endpoints: Mapping[str, LocalEndpoint], say: Callable[[str], None]
) -> _SelectedEngine:
    """Build the engine that was decided on, and say what that means. Raises RunnerStartError."""
    docker_found = find_docker(settings.docker_socket, os.environ)
    try:
        choice = await anyio.to_thread.run_sync(choose_engine, settings.data, settings.engine, docker_found, _utc_now())
        selected = _build_engine(settings, choice.decision.engine)
        if isinstance(selected.engine, ProcessEngine):
            folders = [endpoint.folder for endpoint in endpoints.values() if endpoint.config.process is not None]
            await anyio.to_thread.run_sync(selected.engine.check_job_user, settings.data.resolve() / "jobs", folders)
    except (EngineDecisionUnreadable, NoSuchUser, CannotRunJobs, OSError) as error:
        raise RunnerStartError(str(error)) from error
    if choice.previous is not None:
        say(f"{choice.decision.why}; until now it was {choice.previous}, and jobs that still run there start again")
        await _remove_all_containers(settings, choice.previous)
    say(_describe_engine(settings, choice.decision, selected.run_as))
    return selected


def _build_engine(settings: RunnerSettings, name: EngineName) -> _SelectedEngine:
    """Build the engine of this name. Raises NoSuchUser."""
    if name == DockerEngine.name:
        return _SelectedEngine(DockerEngine(docker_settings(settings)), None)
    user = resolve_job_user(settings.process.user)
    engine = ProcessEngine(settings.data.resolve() / "processes", JOBKIT_DIR, user)
    return _SelectedEngine(engine, user.name if user else current_user_name())


def _describe_engine(settings: RunnerSettings, decision: EngineDecision, run_as: str | None) -> str:
    if run_as is None:
        return f"jobs run in Docker containers ({decision.why}; engine at {docker_settings(settings).base_url})"
    return (
        f"jobs run as plain processes of the user {run_as}, not in containers ({decision.why}): "
        "they see this machine and its network as that user does. engine = docker runs them in containers"
    )


async def _remove_all_containers(settings: RunnerSettings, previous: EngineName) -> None:
    """Remove the containers of the previous engine, which nothing would follow. If it does not answer, they stay."""
    try:
        engine = _build_engine(settings, previous).engine
        async with engine:
            with anyio.fail_after(FORMER_ENGINE_TIMEOUT_S):
                for found in await engine.find(settings.installation, settings.host):
                    await engine.remove(found.handle)
    except (EngineError, TimeoutError, NoSuchUser) as error:
        _log.warning("previous_engine_cleanup_failed", engine=previous, error=str(error))


def docker_settings(settings: RunnerSettings) -> DockerSettings:
    """Return the address of the Docker engine, and its size: the slots and some more."""
    address = settings.docker_socket or os.environ.get("DOCKER_HOST") or DOCKER_SOCKET
    url = address if "://" in address else f"unix://{address}"
    return DockerSettings(base_url=url, streams=settings.slots + EXTRA_STREAMS)


@contextmanager
def _lock_data_dir(data: Path) -> Iterator[None]:
    """Lock the data folder: two runners on it would adopt each other's jobs."""
    for folder in (data, data / "jobs"):
        make_private_folder(folder, TRAVERSE_ONLY_MODE)
    for file in data.iterdir():  # other users may pass through the folder, so each file is made private
        if file.is_file() and not file.is_symlink():
            file.chmod(0o600)
    with (data / "runner.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunnerStartError(f"another runner uses {data}: stop it, or choose another data folder") from error
        yield


def _utc_now() -> datetime:
    return datetime.now(UTC)
