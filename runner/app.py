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
from pathlib import Path

import anyio
import anyio.to_thread
import structlog
from msgspec.structs import replace
from structlog.typing import FilteringBoundLogger

from bus.connection import open_runner
from bus.port import Bus, Denied, Unreachable
from runner.assets import AssetClient, asset_client
from runner.cards import Cards, no_pid
from runner.catalogue import Kind, load
from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.port import Engine, EngineError
from runner.engines.process import ProcessEngine
from runner.gpu.child import nvml
from runner.gpu.memory import MemoryGpus
from runner.gpu.port import Gpus
from runner.gpu.watch import Watch
from runner.injection import choose
from runner.inputs import Cache, EdgeSupplies
from runner.joining import has_joined, joined
from runner.life import Life, Outage
from runner.living import live
from runner.logins import logged_in
from runner.means import Means
from runner.membership import Removed, until_removed
from runner.settings import RunnerSettings
from runner.slots import MIB, Slots
from runner.uptime import of_this_boot

BESIDE = 32  # containers that are followed and run no job: they wait for one, or try a card
JOBKIT = Path(__file__).resolve().parents[1] / "images" / "jobkit"
DOCKER = "unix:///var/run/docker.sock"
PROBE_S = 20.0


class CannotServe(Exception):
    """The runner cannot start as it is set up; the message says what to change."""


async def serve(settings: RunnerSettings, *, ready: Callable[[], None] | None = None) -> None:
    """Run jobs until SIGTERM or SIGINT, then drain. `ready` is called when work is taken.

    What an earlier `--join` kept in the data folder says where broker and edge are; one that is away is waited for.
    Raises CannotServe, CannotJoin, EndpointInvalid, Removed, bus.port.Denied.
    """
    settings, member = joined(settings), has_joined(settings)
    incarnation = secrets.token_hex(8)
    kinds = load(settings.endpoints)
    with _sole(settings.data):
        async with AsyncExitStack() as opened:
            edge = await opened.enter_async_context(_edge(settings))
            try:
                life, means = await _assembled(settings, kinds, incarnation, edge, opened)
            except Denied as error:
                raise (Removed(settings.host) if member else error) from error
            life.log.info("serving", engine=life.engine.name, endpoints=sorted(kinds), slots=settings.slots)
            await _until_stopped(life, means, ready or (lambda: None), edge if member else None)


async def _assembled(
    settings: RunnerSettings,
    kinds: Mapping[str, Kind],
    incarnation: str,
    client: AssetClient,
    opened: AsyncExitStack,
) -> tuple[Life, Means]:
    """Everything a life works with, opened on `opened`."""
    log = structlog.get_logger("runner").bind(host=settings.host, incarnation=incarnation)
    engine = await opened.enter_async_context(_engine(settings, log))
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
        warm=settings.warm,
        grace_s=settings.grace_s,
        poweroff=settings.poweroff,
        dead_man=settings.dead_man,
        logins=logged_in,
        answers=client.answers,
    )
    if isinstance(engine, DockerEngine):
        means = replace(means, injection=await choose(life, means, engine))
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
    return Watch(nvml(), clock=time.time, random=random.random) if settings.gpu.watch else MemoryGpus()


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


@asynccontextmanager
async def _engine(settings: RunnerSettings, log: FilteringBoundLogger) -> AsyncIterator[Engine]:
    """The engine asked for; with `auto` Docker where it answers, else processes."""
    if settings.engine != "process":
        chosen = docker_settings(settings)
        async with DockerEngine(chosen) as docker:
            why = await _silent(docker, log)
            if why is None:
                yield docker
                return
        if settings.engine == "docker":
            raise CannotServe(
                f"no Docker engine answers at {chosen.base_url} ({why}): start it, or set engine = process"
            )
        log.info("no docker", why=why)
    async with ProcessEngine(settings.data.resolve() / "processes", JOBKIT) as processes:
        await _silent(processes, log)
        yield processes


def docker_settings(settings: RunnerSettings) -> DockerSettings:
    """Where the Docker engine is, with room for as many containers as there are slots."""
    address = settings.docker_socket or os.environ.get("DOCKER_HOST") or DOCKER
    url = address if "://" in address else f"unix://{address}"
    return DockerSettings(base_url=url, streams=settings.slots + BESIDE)


async def _silent(engine: Engine, log: FilteringBoundLogger) -> str | None:
    """Why the engine does not answer, or None when it does; what it does not keep is said aloud."""
    try:
        with anyio.fail_after(PROBE_S):
            info = await engine.probe()
    except (EngineError, TimeoutError) as error:
        return str(error) or f"silent for {PROBE_S:.0f} s"
    for note in info.notes:
        log.warning("engine", engine=info.name, note=note)
    return None


@contextmanager
def _sole(data: Path) -> Iterator[None]:
    """Hold the data folder: two runners on it would adopt each other's jobs."""
    (data / "jobs").mkdir(parents=True, exist_ok=True)
    with (data / "runner.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CannotServe(f"another runner works in {data}: stop it, or choose another data folder") from error
        yield


def _utc_now() -> datetime:
    return datetime.now(UTC)
