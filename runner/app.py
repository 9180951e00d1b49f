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
from itertools import count
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import structlog
from structlog.typing import FilteringBoundLogger

from bus.interface import BrokerDenied, BrokerUnreachable, Bus
from bus.open import open_runner
from bus.secret_files import TRAVERSE_ONLY_MODE, make_private_folder
from bus.spans import SpanRecorder, TracesUnavailable, open_spans
from runner.assets.cache import InputCache
from runner.assets.client import AssetClient, EdgeAssetTransfer, asset_client
from runner.assets.container_folders import (
    CacheStore,
    HostFolders,
    SecretFiles,
    SecretsFolderUnusable,
    open_secret_files,
)
from runner.assets.port import AssetError
from runner.assets.volume_source import open_volume_source
from runner.assets.volume_store import GIB, VolumeStore
from runner.context import HostContext, OutageGate, RunnerContext, boot_clock
from runner.endpoints import LocalEndpoint, load_endpoints
from runner.engines.port import MIB
from runner.engines.selection import (
    EngineConfig,
    EngineUnusable,
    SelectedEngine,
    remove_previous_containers,
    select_engine,
)
from runner.execution.disk_usage import is_over
from runner.gpu.allocator import GpuAllocator, is_memory_shared
from runner.gpu.monitor import AssignmentInvalid, open_gpu_monitor
from runner.gpu.port import GpuMonitor
from runner.host.enrollment import (
    HostRemoved,
    apply_enrollment,
    forget_enrollment,
    is_enrolled,
    leaves_at_end,
    wait_until_removed,
)
from runner.host.health_file import HealthFile
from runner.host_facts import HostEnd, HostEndInvalid, find_end, find_logged_in_users
from runner.lifecycle import run_lifecycle
from runner.metrics import RunnerMetrics, ScrapeReader, listen_for_scrapes
from runner.settings import RunnerSettings
from runner.slots import Slots
from schemas.certificates import PinInvalid


class RunnerStartError(Exception):
    """The runner cannot start with these settings; the message says what to change."""


def _do_nothing() -> None:
    """Do nothing: the default of a callback."""


class RunnerCallbacks(NamedTuple):
    """Callbacks of `serve` to the process around it, which prints and notifies the service manager."""

    say: Callable[[str], None]
    ready: Callable[[], None]
    stopping: Callable[[], None]


async def serve(
    settings: RunnerSettings,
    *,
    say: Callable[[str], None],
    ready: Callable[[], None] = _do_nothing,
    stopping: Callable[[], None] = _do_nothing,
) -> None:
    """Run jobs until SIGTERM or SIGINT, or until there was nothing to do for `until_idle_s`; then drain.

    `ready` is called when the runner begins to claim, `stopping` when it begins to drain.

    `say` receives lines for people: about the engine, and why the runner ends. If the data folder holds an enrollment
    (`--join`), it replaces the addresses of broker and edge. A broker, an edge or a Docker engine that is away is
    waited for.

    Raises RunnerStartError, EnrollmentUnreadable, EndpointInvalid, HostRemoved, BrokerDenied, BrokerUnreachable.
    """
    settings, enrolled = apply_enrollment(settings), is_enrolled(settings)
    incarnation = secrets.token_hex(8)
    endpoints = load_endpoints(settings.endpoints, settings.pool)
    with _lock_data_dir(settings.data):
        async with _open_asset_client(settings) as edge:
            async with AsyncExitStack() as stack:
                selected = await _select_engine(settings, endpoints, say)
                try:
                    context, host = await _build_contexts(settings, endpoints, incarnation, edge, selected, stack)
                except BrokerDenied as error:
                    raise (HostRemoved(settings.host) if enrolled else error) from error
                context.log.info(
                    "runner_started",
                    engine=context.engine.name,
                    endpoints=sorted(endpoints),
                    slots=settings.slots,
                    ends_in_s=host.end and round(host.end.lifetime_s),
                )
                is_empty = await _run_until_stopped(
                    context, host, RunnerCallbacks(say, ready, stopping), edge if enrolled else None
                )
            if is_empty and leaves_at_end(settings):
                await _leave(settings, edge)


async def _leave(settings: RunnerSettings, edge: AssetClient) -> None:
    """Tell the edge that this host has ended, so that it removes the host. If it is away, it does so later by itself.

    Nothing of a job is left here, so nothing needs the host's key any more.
    """
    try:
        await edge.leave(settings.host)
    except AssetError as error:
        structlog.get_logger("runner").warning("leave_failed", host=settings.host, error=str(error))
        return
    await anyio.to_thread.run_sync(forget_enrollment, settings)


async def _build_contexts(  # noqa: PLR0913, PLR0917 - everything read and opened before
    settings: RunnerSettings,
    endpoints: Mapping[str, LocalEndpoint],
    incarnation: str,
    client: AssetClient,
    selected: SelectedEngine,
    stack: AsyncExitStack,
) -> tuple[RunnerContext, HostContext]:
    """Open everything that the runner works with on `stack`."""
    log = structlog.get_logger("runner").bind(host=settings.host, incarnation=incarnation)
    engine = selected.engine
    await stack.enter_async_context(engine)
    gpus = await stack.enter_async_context(_open_gpu_monitor(settings))
    if problem := gpus.snapshot().assigned_wrongly:
        raise RunnerStartError(f"{problem}: correct it, or name this runner's GPUs with gpu.visible")
    metrics = RunnerMetrics()
    cache = InputCache(
        settings.data / "cache",
        settings.cache_bytes,
        client,
        reserve_bytes=_disk_reserve_bytes(settings),
        metrics=metrics,
    )
    _listen_for_scrapes(settings, metrics, stack)
    folders = await _open_folders(settings, client, stack)
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
        metrics=metrics,
        spans=await stack.enter_async_context(_open_spans(settings)),
        ready_at=_utc_now(),
        folders=folders,
        secrets=await _open_secret_files(settings, engine.name, log, stack),
    )
    allocator = GpuAllocator(gpus, settings.gpu, time.monotonic, engine.pid)
    return context, _make_host_context(settings, endpoints, allocator, cache, client, selected.run_as)


def _make_host_context(  # noqa: PLR0913, PLR0917 - what was opened before
    settings: RunnerSettings,
    endpoints: Mapping[str, LocalEndpoint],
    gpu_allocator: GpuAllocator,
    cache: InputCache,
    client: AssetClient,
    run_as: str | None,
) -> HostContext:
    return HostContext(
        endpoints=dict(endpoints),
        gpu_allocator=gpu_allocator,
        slots=Slots(settings.slots),
        drop_assets=cache.drop,
        run_as=run_as,
        labels=settings.labels,
        warm=settings.warm,
        images=settings.images,
        egress_image=settings.egress.image,
        volumes=settings.volumes,
        caches=settings.caches,
        registries=settings.registries,
        endpoint_folders=settings.endpoints,
        pool=settings.pool,
        until_idle_s=settings.until_idle_s,
        end=_find_end(settings),
        pulled_images_file=settings.data / "pulled_images.json",
        grace_s=settings.grace_s,
        poweroff=settings.poweroff,
        dead_man=settings.dead_man,
        find_logged_in_users=find_logged_in_users,
        is_edge_alive=client.is_alive,
        report_health=HealthFile(settings.health_file).renew,
    )


def _disk_reserve_bytes(settings: RunnerSettings) -> int:
    return settings.gpu.placement.disk_reserve_mb * MIB


async def _open_folders(settings: RunnerSettings, client: AssetClient, stack: AsyncExitStack) -> HostFolders:
    """Open the folders of volumes and caches."""
    volumes = VolumeStore(
        settings.volumes.folder or settings.data / "volumes",
        settings.data / "jobs",
        int(settings.volumes.max_gb * GIB),
        _disk_reserve_bytes(settings),
    )
    source = await stack.enter_async_context(open_volume_source(client))
    return HostFolders(volumes, source, CacheStore(settings.data / "caches", is_over))


def _find_end(settings: RunnerSettings) -> HostEnd | None:
    try:
        return find_end(settings.ends_at, settings.ends_after_s, os.environ)
    except HostEndInvalid as error:
        raise RunnerStartError(str(error)) from error


async def _open_secret_files(
    settings: RunnerSettings, engine: str, log: FilteringBoundLogger, stack: AsyncExitStack
) -> SecretFiles:
    """Return where the secrets of jobs are kept: in memory, if jobs can get folders there. Raises RunnerStartError."""

    is_shared = is_memory_shared(settings.gpu.mps)
    find = partial(open_secret_files, settings.data, settings.secrets_folder, engine, is_memory_shared=is_shared)
    try:
        files = await anyio.to_thread.run_sync(find)
    except SecretsFolderUnusable as error:
        raise RunnerStartError(str(error)) from error
    if not files.is_in_memory:
        log.info("secrets_kept_on_disk", reason="no tmpfs that jobs can get: secrets_folder names another")
    stack.push_async_callback(anyio.to_thread.run_sync, files.close)
    return files


def _listen_for_scrapes(settings: RunnerSettings, metrics: RunnerMetrics, stack: AsyncExitStack) -> None:
    """Answer Prometheus until `stack` is closed, if the settings say where. Raises RunnerStartError."""
    address = settings.metrics.address
    if address is None:
        return
    reader = ScrapeReader(metrics, settings.data, settings.data / "cache")
    try:
        port = stack.enter_context(listen_for_scrapes(address, metrics, reader))
    except OSError as error:
        reason = f"{address.host} port {address.port} cannot be opened ({error.strerror})"
        raise RunnerStartError(f"{reason}: choose another with metrics.listen") from error
    structlog.get_logger("runner").info("metrics_served", bind=address.host, port=port)


async def _run_until_stopped(
    context: RunnerContext,
    host: HostContext,
    callbacks: RunnerCallbacks,
    edge: AssetClient | None,
) -> bool:
    """Run until a signal arrives, there is nothing to do, or the edge of an enrolled host does not know it any more.

    Return whether nothing of a job is left on this host. Raises HostRemoved in the last case.
    """
    stop = anyio.Event()
    removed = False
    async with anyio.create_task_group() as tasks:

        async def stop_on_signal() -> None:
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for _ in signals:
                    callbacks.stopping()
                    stop.set()

        async def stop_on_removal(edge: AssetClient) -> None:
            nonlocal removed
            await wait_until_removed(context.bus.health, edge)
            removed = True
            callbacks.stopping()
            stop.set()

        def stop_when_idle() -> None:
            callbacks.say(f"idle for {host.until_idle_s:g} s: the runner ends")
            callbacks.stopping()
            stop.set()

        tasks.start_soon(stop_on_signal)
        if edge is not None:
            tasks.start_soon(stop_on_removal, edge)
        is_empty = await run_lifecycle(context, host, stop, callbacks.ready, stop_when_idle)
        tasks.cancel_scope.cancel()
    if removed:
        raise HostRemoved(context.host)
    return is_empty


@asynccontextmanager
async def _open_asset_client(settings: RunnerSettings) -> AsyncIterator[AssetClient]:
    edge = settings.edge
    try:
        async with asset_client(edge.url, edge.key, pin=edge.pin) as client:
            yield client
    except PinInvalid as error:
        raise RunnerStartError(f"{error}: join again with a new token, or correct edge.pin") from error


def _open_gpu_monitor(settings: RunnerSettings) -> GpuMonitor:
    try:
        return open_gpu_monitor(watch=settings.gpu.watch, visible=settings.gpu.visible)
    except AssignmentInvalid as error:
        raise RunnerStartError(str(error)) from error


@asynccontextmanager
async def _open_spans(settings: RunnerSettings) -> AsyncIterator[SpanRecorder]:
    try:
        async with open_spans(settings.traces, "lamplighter-runner", settings.host) as spans:
            yield spans
    except TracesUnavailable as error:
        raise RunnerStartError(str(error)) from error


@asynccontextmanager
async def _connect_bus(settings: RunnerSettings, log: FilteringBoundLogger) -> AsyncIterator[Bus]:
    """Connect to the broker; retry until it answers, because the host may be up first.

    Raises BrokerUnreachable once a runner with `until_idle_s` has waited that long: its machine may cost money.
    """
    began_at, limit_s = anyio.current_time(), settings.until_idle_s
    async with AsyncExitStack() as stack:
        for failures in count():
            try:
                bus = await stack.enter_async_context(open_runner(settings.broker))
                break
            except BrokerUnreachable as error:
                log.warning("broker_unavailable", error=str(error))
                if limit_s is not None and anyio.current_time() - began_at >= limit_s:
                    reason = f"the broker has not answered for {limit_s:g} s, after which this runner ends"
                    raise BrokerUnreachable(f"{reason}: {error}") from error
                await anyio.sleep(settings.pace.retry_backoff.delay_s(failures))
        yield bus


def engine_config(settings: RunnerSettings) -> EngineConfig:
    """Return the part of the settings that concerns the engine."""
    return EngineConfig(
        data=settings.data,
        engine=settings.engine,
        docker_socket=settings.docker_socket,
        job_user=settings.process.user,
        sandbox=settings.process.sandbox,
        slots=settings.slots,
        own_services=_list_own_services(settings),
    )


def _list_own_services(settings: RunnerSettings) -> tuple[str, ...]:
    """Return the hosts of broker and edge, which no job may reach, also where they are public."""
    urls = [*settings.broker.url.split(","), settings.edge.url]
    hosts = (urlsplit(url if "://" in url else f"//{url}").hostname for url in urls)
    return tuple(host for host in hosts if host)


async def _select_engine(
    settings: RunnerSettings, endpoints: Mapping[str, LocalEndpoint], say: Callable[[str], None]
) -> SelectedEngine:
    """Select the engine, and say what that means. Raises RunnerStartError."""
    config = engine_config(settings)
    images = [endpoint.folder for endpoint in endpoints.values() if endpoint.config.process is not None]
    try:
        selected = await select_engine(config, images, _utc_now())
    except EngineUnusable as error:
        raise RunnerStartError(str(error)) from error
    if selected.previous is not None:
        say(f"{selected.why}; until now it was {selected.previous}, and jobs that still run there start again")
        await remove_previous_containers(config, selected.previous, settings.installation, settings.host)
    say(selected.summary)
    return selected


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
