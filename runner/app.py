"""One runner process: the composition root. Everything it works with is opened here, and closed in reverse."""

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

EXTRA_STREAMS = 32  # containers that are followed and run no job: they wait for one, or try a card
JOBKIT_DIR = Path(__file__).resolve().parents[1] / "images" / "jobkit"
FORMER_ENGINE_TIMEOUT_S = 20.0

_log = structlog.get_logger("runner")


class RunnerStartError(Exception):
    """The runner cannot start as it is set up; the message says what to change."""


async def serve(
    settings: RunnerSettings, *, say: Callable[[str], None], ready: Callable[[], None] | None = None
) -> None:
    """Run jobs until SIGTERM or SIGINT, then drain. `ready` is called when work is taken.

    `say` is told what runs the jobs, in a line for people. What an earlier `--join` kept in the data folder says where
    broker and edge are; one that is away is waited for, and so is Docker.
    Raises CannotServe, CannotJoin, EndpointInvalid, Removed, bus.port.Denied.
    """
    settings, member = apply_enrollment(settings), is_enrolled(settings)
    incarnation = secrets.token_hex(8)
    kinds = load_endpoints(settings.endpoints)
    with _lock_data_dir(settings.data):
        async with AsyncExitStack() as opened:
            edge = await opened.enter_async_context(_open_asset_client(settings))
            chosen = await _select_engine(settings, kinds, say)
            try:
                life, means = await _build_contexts(settings, kinds, incarnation, edge, chosen, opened)
            except BrokerDenied as error:
                raise (HostRemoved(settings.host) if member else error) from error
            life.log.info("serving", engine=life.engine.name, endpoints=sorted(kinds), slots=settings.slots)
            await _run_until_stopped(life, means, ready or (lambda: None), edge if member else None)


class _SelectedEngine(NamedTuple):
    """`run_as`: the user that jobs of the process engine run as."""

    engine: DockerEngine | ProcessEngine
    run_as: str | None


async def _build_contexts(  # noqa: PLR0913, PLR0917 - what was read and opened before
    settings: RunnerSettings,
    kinds: Mapping[str, LocalEndpoint],
    incarnation: str,
    client: AssetClient,
    chosen: _SelectedEngine,
    opened: AsyncExitStack,
) -> tuple[RunnerContext, HostContext]:
    """Everything a life works with, opened on `opened`."""
    log = structlog.get_logger("runner").bind(host=settings.host, incarnation=incarnation)
    engine = chosen.engine
    await opened.enter_async_context(engine)
    gpus = await opened.enter_async_context(_open_gpu_monitor(settings))
    reserve = settings.gpu.placement.disk_reserve_mb * MIB
    cache = InputCache(settings.data / "cache", settings.cache_bytes, client, reserve_bytes=reserve)
    life = RunnerContext(
        installation=settings.installation,
        host=settings.host,
        incarnation=incarnation,
        jobs_dir=settings.data / "jobs",
        bus=await opened.enter_async_context(_connect_bus(settings, log)),
        engine=engine,
        assets=EdgeAssetTransfer(cache, client),
        now=_utc_now,
        uptime=boot_clock(),
        jitter=random.random,
        intervals=settings.pace,
        outage=OutageGate(),
        log=log,
    )
    means = HostContext(
        endpoints=kinds,
        gpu_allocator=GpuAllocator(
            gpus, settings.gpu, time.monotonic, engine.pid if isinstance(engine, ProcessEngine) else no_pid
        ),
        slots=Slots(settings.slots),
        drop_assets=cache.drop,
        containers_outlive_runner=engine.name != ProcessEngine.name,
        detect_injection=partial(choose_way, engine=engine) if isinstance(engine, DockerEngine) else detect_nothing,
        run_as=chosen.run_as,
        warm=settings.warm,
        grace_s=settings.grace_s,
        poweroff=settings.poweroff,
        dead_man=settings.dead_man,
        find_logged_in_users=find_logged_in_users,
        is_edge_alive=client.is_alive,
    )
    return life, means


async def _run_until_stopped(
    life: RunnerContext, means: HostContext, ready: Callable[[], None], edge: AssetClient | None
) -> None:
    """Live until a signal, or until the `edge` of a host that joined does not know it any more: raises Removed."""
    stop = anyio.Event()
    removed = False
    async with anyio.create_task_group() as tasks:

        async def hear() -> None:
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for _ in signals:
                    stop.set()

        async def watch(edge: AssetClient) -> None:
            nonlocal removed
            await wait_until_removed(life.bus.health, edge)
            removed = True
            stop.set()

        tasks.start_soon(hear)
        if edge is not None:
            tasks.start_soon(watch, edge)
        await run_lifecycle(life, means, stop, ready)
        tasks.cancel_scope.cancel()
    if removed:
        raise HostRemoved(life.host)


@asynccontextmanager
async def _open_asset_client(settings: RunnerSettings) -> AsyncIterator[AssetClient]:
    edge = settings.edge
    try:
        async with asset_client(edge.url, edge.key, pin=edge.pin) as client:
            yield client
    except FileNotFoundError as error:
        raise RunnerStartError(f"{edge.pin} is not there: join again with a new token, or correct edge.pin") from error


def _open_gpu_monitor(settings: RunnerSettings) -> GpuMonitor:
    return NvmlMonitor(nvml_spawner(), clock=time.time, random=random.random) if settings.gpu.watch else NoGpuMonitor()


@asynccontextmanager
async def _connect_bus(settings: RunnerSettings, log: FilteringBoundLogger) -> AsyncIterator[Bus]:
    """The broker, waited for: a host may be up before it."""
    wait = settings.pace.retry_least_s
    async with AsyncExitStack() as opened:
        while True:
            try:
                bus = await opened.enter_async_context(open_runner(settings.broker))
                break
            except BrokerUnreachable as error:
                log.warning("waiting", what="broker", why=str(error))
                await anyio.sleep(wait)
                wait = min(2 * wait, settings.pace.retry_most_s)
        yield bus


async def _select_engine(
    settings: RunnerSettings, kinds: Mapping[str, LocalEndpoint], say: Callable[[str], None]
) -> _SelectedEngine:
    """The engine that was decided on; what that means is said aloud. Raises CannotServe."""
    client = find_docker(settings.docker_socket, os.environ)
    try:
        choice = await anyio.to_thread.run_sync(choose_engine, settings.data, settings.engine, client, _utc_now())
        chosen = _build_engine(settings, choice.decision.engine)
        if isinstance(chosen.engine, ProcessEngine):
            folders = [kind.folder for kind in kinds.values() if kind.config.process is not None]
            await anyio.to_thread.run_sync(chosen.engine.check_job_user, settings.data.resolve() / "jobs", folders)
    except (EngineDecisionUnreadable, NoSuchUser, CannotRunJobs, OSError) as error:
        raise RunnerStartError(str(error)) from error
    if choice.previous is not None:
        say(f"{choice.decision.why}; until now it was {choice.previous}, and what that still runs is started again")
        await _remove_all_containers(settings, choice.previous)
    say(_describe_engine(settings, choice.decision, chosen.run_as))
    return chosen


def _build_engine(settings: RunnerSettings, name: EngineName) -> _SelectedEngine:
    """Raises NoSuchUser."""
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


async def _remove_all_containers(settings: RunnerSettings, former: EngineName) -> None:
    """End what the engine before still runs: nobody would follow it. One that does not answer keeps it."""
    try:
        engine = _build_engine(settings, former).engine
        async with engine:
            with anyio.fail_after(FORMER_ENGINE_TIMEOUT_S):
                for found in await engine.find(settings.installation, settings.host):
                    await engine.remove(found.handle)
    except (EngineError, TimeoutError, NoSuchUser) as error:
        _log.warning("engine before left as it is", engine=former, why=str(error))


def docker_settings(settings: RunnerSettings) -> DockerSettings:
    """Where the Docker engine is, with room for as many containers as there are slots."""
    address = settings.docker_socket or os.environ.get("DOCKER_HOST") or DOCKER_SOCKET
    url = address if "://" in address else f"unix://{address}"
    return DockerSettings(base_url=url, streams=settings.slots + EXTRA_STREAMS)


@contextmanager
def _lock_data_dir(data: Path) -> Iterator[None]:
    """Hold the data folder: two runners on it would adopt each other's jobs."""
    for folder in (data, data / "jobs"):
        make_private_folder(folder, TRAVERSE_ONLY_MODE)
    for file in data.iterdir():  # another user may pass through the folder, so each file is closed by itself
        if file.is_file() and not file.is_symlink():
            file.chmod(0o600)
    with (data / "runner.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunnerStartError(f"another runner works in {data}: stop it, or choose another data folder") from error
        yield


def _utc_now() -> datetime:
    return datetime.now(UTC)
