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

from bus.connection import open_runner
from bus.port import Bus, Denied, Unreachable
from bus.private import PASSAGE, private_folder
from runner.assets import AssetClient, asset_client
from runner.cards import Cards, no_pid
from runner.catalogue import Kind, load
from runner.engines.choice import SOCKET, Decision, DecisionUnreadable, Name, choose, docker_client
from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.jobuser import NoSuchUser, job_user, own_name
from runner.engines.port import EngineError
from runner.engines.process import CannotRunJobs, ProcessEngine
from runner.gpu.board import NoGpuMonitor
from runner.gpu.child import nvml
from runner.gpu.port import Gpus
from runner.gpu.watch import Watch
from runner.injection import choose as choose_way
from runner.inputs import Cache, EdgeSupplies
from runner.joining import has_joined, joined
from runner.life import Life, Outage
from runner.living import live
from runner.logins import logged_in
from runner.means import Means, nothing_to_try
from runner.membership import Removed, until_removed
from runner.settings import RunnerSettings
from runner.slots import MIB, Slots
from runner.uptime import of_this_boot

BESIDE = 32  # containers that are followed and run no job: they wait for one, or try a card
JOBKIT = Path(__file__).resolve().parents[1] / "images" / "jobkit"
PROBE_S = 20.0

_log = structlog.get_logger("runner")


class CannotServe(Exception):
    """The runner cannot start as it is set up; the message says what to change."""


async def serve(
    settings: RunnerSettings, *, say: Callable[[str], None], ready: Callable[[], None] | None = None
) -> None:
    """Run jobs until SIGTERM or SIGINT, then drain. `ready` is called when work is taken.

    `say` is told what runs the jobs, in a line for people. What an earlier `--join` kept in the data folder says where
    broker and edge are; one that is away is waited for, and so is Docker.
    Raises CannotServe, CannotJoin, EndpointInvalid, Removed, bus.port.Denied.
    """
    settings, member = joined(settings), has_joined(settings)
    incarnation = secrets.token_hex(8)
    kinds = load(settings.endpoints)
    with _sole(settings.data):
        async with AsyncExitStack() as opened:
            edge = await opened.enter_async_context(_edge(settings))
            chosen = await _chosen(settings, kinds, say)
            try:
                life, means = await _assembled(settings, kinds, incarnation, edge, chosen, opened)
            except Denied as error:
                raise (Removed(settings.host) if member else error) from error
            life.log.info("serving", engine=life.engine.name, endpoints=sorted(kinds), slots=settings.slots)
            await _until_stopped(life, means, ready or (lambda: None), edge if member else None)


class _Chosen(NamedTuple):
    """`run_as`: the user that jobs of the process engine run as."""

    engine: DockerEngine | ProcessEngine
    run_as: str | None


async def _assembled(  # noqa: PLR0913, PLR0917 - what was read and opened before
    settings: RunnerSettings,
    kinds: Mapping[str, Kind],
    incarnation: str,
    client: AssetClient,
    chosen: _Chosen,
    opened: AsyncExitStack,
) -> tuple[Life, Means]:
    """Everything a life works with, opened on `opened`."""
    log = structlog.get_logger("runner").bind(host=settings.host, incarnation=incarnation)
    engine = chosen.engine
    await opened.enter_async_context(engine)
    gpus = await opened.enter_async_context(_gpus(settings))
    reserve = settings.gpu.placement.disk_reserve_mb * MIB
    cache = Cache(settings.data / "cache", settings.cache_bytes, client, reserve_bytes=reserve)
    life = Life(
        installation=settings.installation,
        host=settings.host,
        incarnation=incarnation,
        jobs=settings.data / "jobs",
        bus=await opened.enter_async_context(_bus(settings, log)),
        engine=engine,
        supplies=EdgeSupplies(cache, client),
        now=_utc_now,
        up=of_this_boot(),
        jitter=random.random,
        pace=settings.pace,
        outage=Outage(),
        log=log,
    )
    means = Means(
        kinds=kinds,
        cards=Cards(gpus, settings.gpu, time.monotonic, engine.pid if isinstance(engine, ProcessEngine) else no_pid),
        slots=Slots(settings.slots),
        forget=cache.drop,
        leave=engine.name != ProcessEngine.name,
        try_injection=partial(choose_way, engine=engine) if isinstance(engine, DockerEngine) else nothing_to_try,
        run_as=chosen.run_as,
        warm=settings.warm,
        grace_s=settings.grace_s,
        poweroff=settings.poweroff,
        dead_man=settings.dead_man,
        logins=logged_in,
        answers=client.answers,
    )
    return life, means


async def _until_stopped(life: Life, means: Means, ready: Callable[[], None], edge: AssetClient | None) -> None:
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
            await until_removed(life.bus.link, edge)
            removed = True
            stop.set()

        tasks.start_soon(hear)
        if edge is not None:
            tasks.start_soon(watch, edge)
        await live(life, means, stop, ready)
        tasks.cancel_scope.cancel()
    if removed:
        raise Removed(life.host)


@asynccontextmanager
async def _edge(settings: RunnerSettings) -> AsyncIterator[AssetClient]:
    edge = settings.edge
    try:
        async with asset_client(edge.url, edge.key, pin=edge.pin) as client:
            yield client
    except FileNotFoundError as error:
        raise CannotServe(f"{edge.pin} is not there: join again with a new token, or correct edge.pin") from error


def _gpus(settings: RunnerSettings) -> Gpus:
    return Watch(nvml(), clock=time.time, random=random.random) if settings.gpu.watch else NoGpuMonitor()


@asynccontextmanager
async def _bus(settings: RunnerSettings, log: FilteringBoundLogger) -> AsyncIterator[Bus]:
    """The broker, waited for: a host may be up before it."""
    wait = settings.pace.retry_least_s
    async with AsyncExitStack() as opened:
        while True:
            try:
                bus = await opened.enter_async_context(open_runner(settings.broker))
                break
            except Unreachable as error:
                log.warning("waiting", what="broker", why=str(error))
                await anyio.sleep(wait)
                wait = min(2 * wait, settings.pace.retry_most_s)
        yield bus


async def _chosen(settings: RunnerSettings, kinds: Mapping[str, Kind], say: Callable[[str], None]) -> _Chosen:
    """The engine that was decided on; what that means is said aloud. Raises CannotServe."""
    client = docker_client(settings.docker_socket, os.environ)
    try:
        choice = await anyio.to_thread.run_sync(choose, settings.data, settings.engine, client, _utc_now())
        chosen = _engine(settings, choice.decision.engine)
        if isinstance(chosen.engine, ProcessEngine):
            folders = [kind.folder for kind in kinds.values() if kind.endpoint.process is not None]
            await anyio.to_thread.run_sync(chosen.engine.try_out, settings.data.resolve() / "jobs", folders)
    except (DecisionUnreadable, NoSuchUser, CannotRunJobs, OSError) as error:
        raise CannotServe(str(error)) from error
    if choice.before is not None:
        say(f"{choice.decision.why}; until now it was {choice.before}, and what that still runs is started again")
        await _end_all(settings, choice.before)
    say(_how(settings, choice.decision, chosen.run_as))
    return chosen


def _engine(settings: RunnerSettings, name: Name) -> _Chosen:
    """Raises NoSuchUser."""
    if name == DockerEngine.name:
        return _Chosen(DockerEngine(docker_settings(settings)), None)
    user = job_user(settings.process.user)
    engine = ProcessEngine(settings.data.resolve() / "processes", JOBKIT, user)
    return _Chosen(engine, user.name if user else own_name())


def _how(settings: RunnerSettings, decision: Decision, run_as: str | None) -> str:
    if run_as is None:
        return f"jobs run in Docker containers ({decision.why}; engine at {docker_settings(settings).base_url})"
    return (
        f"jobs run as plain processes of the user {run_as}, not in containers ({decision.why}): "
        "they see this machine and its network as that user does. engine = docker runs them in containers"
    )


async def _end_all(settings: RunnerSettings, former: Name) -> None:
    """End what the engine before still runs: nobody would follow it. One that does not answer keeps it."""
    try:
        engine = _engine(settings, former).engine
        async with engine:
            with anyio.fail_after(PROBE_S):
                for found in await engine.find(settings.installation, settings.host):
                    await engine.remove(found.handle)
    except (EngineError, TimeoutError, NoSuchUser) as error:
        _log.warning("engine before left as it is", engine=former, why=str(error))


def docker_settings(settings: RunnerSettings) -> DockerSettings:
    """Where the Docker engine is, with room for as many containers as there are slots."""
    address = settings.docker_socket or os.environ.get("DOCKER_HOST") or SOCKET
    url = address if "://" in address else f"unix://{address}"
    return DockerSettings(base_url=url, streams=settings.slots + BESIDE)


@contextmanager
def _sole(data: Path) -> Iterator[None]:
    """Hold the data folder: two runners on it would adopt each other's jobs."""
    for folder in (data, data / "jobs"):
        private_folder(folder, PASSAGE)
    for file in data.iterdir():  # another user may pass through the folder, so each file is closed by itself
        if file.is_file() and not file.is_symlink():
            file.chmod(0o600)
    with (data / "runner.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CannotServe(f"another runner works in {data}: stop it, or choose another data folder") from error
        yield


def _utc_now() -> datetime:
    return datetime.now(UTC)
