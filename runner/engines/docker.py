"""The Docker engine, through docker-py in threads. Only this module imports docker-py."""

import asyncio
import math
import os
import shutil
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    AbstractAsyncContextManager,
    aclosing,
    contextmanager,
    suppress,
)
from typing import Any, Self, TypeVar

import docker
import docker.auth
import docker.errors
import requests
import urllib3
from msgspec import Struct

from runner.egress.proxy import EgressProxy
from runner.engines.docker_container_config import container_config, label_filters, seccomp_profile
from runner.engines.docker_egress import EgressNetworks, join_network
from runner.engines.docker_replies import (
    LogCursor,
    LogFrameParser,
    PullProgressParser,
    classify_pull_failure,
    classify_start_failure,
    manifest_digest,
    parse_container,
    parse_engine_info,
    parse_exit,
    parse_runtimes,
    supports_profile,
    was_started,
)
from runner.engines.launch import measure_processes, prepare_job_dir, prepare_mounts, start_cancellable
from runner.engines.output_streams import ReadBytes, open_stream
from runner.engines.port import (
    WARM_ENV,
    ContainerExit,
    ContainerSpec,
    ContainerUsage,
    EngineError,
    EngineInfo,
    EngineUnavailable,
    FoundContainer,
    GpuInjection,
    LocalImage,
    NoSuchContainer,
    OutputChunk,
    OutputCursor,
    PullFailed,
    PullFailure,
    PullProgress,
    RegistryLogin,
    StartFailed,
)
from runner.engines.process_shim import started_at
from schemas.endpoint_parts import ImageReference, RuntimeName

T = TypeVar("T")


class ReconnectWindow:
    """Limits how long an engine that does not answer is retried. Failures further apart are separate outages."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._first = self._last = -limit_s

    def check(self, error: EngineUnavailable) -> None:
        """Raise `error` if the outage has lasted too long."""
        now = asyncio.get_running_loop().time()
        if now - self._last > self._limit_s:
            self._first = now
        self._last = now
        if now - self._first >= self._limit_s:
            raise error


NOBODY_UID = 65534
RECONNECT_INTERVAL_S = 0.05  # between two requests to a daemon that restarts
EXTRA_STREAMS = 32  # containers that are followed and run no job: warm ones and GPU probes
STOP_MARGIN_S = 10.0  # a stop may take this much longer than its grace


class DockerSettings(Struct, frozen=True):
    """Address and size of the engine. `streams` is how many containers are followed at once, with two threads each."""

    base_url: str = "unix:///var/run/docker.sock"
    injection: GpuInjection = "device_request"
    streams: int = 32
    call_timeout_s: int = 30
    reconnect_s: float = 60.0  # how long to wait for a daemon that restarts

    @classmethod
    def for_slots(cls, base_url: str, slots: int) -> Self:
        """Return settings with an output stream for each slot, and some more."""
        return cls(base_url, streams=slots + EXTRA_STREAMS)


@contextmanager
def _map_docker_errors() -> Iterator[None]:
    """Translate foreign errors to those of the port."""
    try:
        yield
    except docker.errors.NotFound as error:
        raise NoSuchContainer(error.explanation) from error
    except docker.errors.APIError as error:
        raise EngineError(error.explanation or str(error)) from error
    except (requests.RequestException, urllib3.exceptions.HTTPError, docker.errors.DockerException, OSError) as error:
        raise EngineUnavailable(f"Docker does not answer: {error}; is the daemon running?") from error


class DockerEngine:
    """Jobs in hardened containers (`docker_container_config`), run as the runner's user; under root, as uid 65534."""

    name = "docker"
    containers_outlive_runner = True
    injection_modes: tuple[GpuInjection, ...] = ("cdi", "device_request", "runtime")

    def __init__(self, settings: DockerSettings, proxy: EgressProxy | None = None) -> None:
        self._settings = settings
        self._networks = EgressNetworks(proxy or EgressProxy(), self._remove_container)
        self._injection = settings.injection
        self._threads = 2 * settings.streams + 8
        self.pool = ThreadPoolExecutor(self._threads, thread_name_prefix="docker")
        self._api_client: docker.APIClient | None = None
        self._connect_lock = threading.Lock()
        self._pids: dict[str, tuple[int, int]] = {}  # of the main processes of measured containers, and their starts
        self._has_profile_support: bool | None = None  # whether the daemon accepts our seccomp profile; None: unknown
        self._owner = (os.getuid(), os.getgid()) if os.getuid() else (NOBODY_UID, NOBODY_UID)

    async def __aenter__(self) -> Self:
        self._networks.loop = asyncio.get_running_loop()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.pool.shutdown, cancel_futures=True)  # waits until cancelled starts are undone
        self._networks.close()
        if self._api_client is not None:
            self._api_client.close()

    def set_injection(self, injection: GpuInjection) -> None:
        self._injection = injection

    async def pid(self, handle: str) -> int | None:
        return None

    async def start(self, spec: ContainerSpec) -> str:
        return await start_cancellable(self.pool, lambda: self._start(spec), self._discard)

    def _start(self, spec: ContainerSpec) -> str:
        """Create and start in one thread, so that a cancellation cannot come between the two."""
        try:
            prepare_job_dir(spec.job_dir, self._owner, warm=spec.env.get(WARM_ENV) == "1", mounted=True)
            prepare_mounts(spec.mounts, self._owner, mounted=True)
        except OSError as error:
            raise StartFailed("engine_error", f"the job's folder cannot be prepared: {error}") from error
        handle = network = ""
        try:
            with _map_docker_errors():
                client = self.connect()
                profile = seccomp_profile() if self._supports_profile(client) else None
                runtime = _find_runtime(client, spec.runtime) if spec.runtime else None
                config = container_config(spec, "{}:{}".format(*self._owner), self._injection, profile, runtime)
                if spec.egress is not None:
                    network = self._networks.start(client, spec, self._owner, profile)
                    config = join_network(config, network)
                handle = str(client.create_container_from_config(config)["Id"])
                if network:
                    self._networks.note_job(handle, network)
                client.start(handle)
        except EngineUnavailable:
            if network and not handle:
                self._networks.abandon(network)
            raise
        except EngineError as error:
            if handle:
                self._remove(handle)
            elif network:
                self._networks.remove(network)
            raise StartFailed(classify_start_failure(str(error)), str(error)) from error
        return handle

    def _supports_profile(self, client: docker.APIClient) -> bool:
        """Return whether the daemon accepts our profile.

        The daemon is asked once, as for its API version. If it is updated, this runner still uses the first answers.
        """
        if self._has_profile_support is None:
            self._has_profile_support = supports_profile(client.info())
        return self._has_profile_support

    def _discard(self, handle: str) -> None:
        with suppress(EngineError):
            self._remove(handle)

    async def output(self, handle: str, since: OutputCursor | None) -> AsyncGenerator[OutputChunk]:
        cursor, reconnect = LogCursor(since), ReconnectWindow(self._settings.reconnect_s)
        while True:
            try:
                # Checked before reading: a follow may end early, but a read after the exit returns everything.
                has_exited = not (await self._state(handle))["Running"]
                async with aclosing(self._read_log(handle, cursor, follow=not has_exited)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                if has_exited:
                    return
            except EngineUnavailable as error:
                reconnect.check(error)
            await asyncio.sleep(RECONNECT_INTERVAL_S)

    async def _read_log(self, handle: str, cursor: LogCursor, *, follow: bool) -> AsyncGenerator[OutputChunk]:
        frames = LogFrameParser()
        query = {"stdout": 1, "stderr": 1, "timestamps": 1, "follow": int(follow), "since": cursor.rewind()}
        async with self._stream("GET", f"/containers/{handle}/logs", query) as read:
            while data := await read():
                for chunk in cursor.add(frames.feed(data)):
                    yield chunk
        if not follow:
            for chunk in cursor.close():
                yield chunk

    async def wait(self, handle: str) -> ContainerExit:
        reconnect = ReconnectWindow(self._settings.reconnect_s)
        while True:
            try:
                state = await self._state(handle)
                if not state["Running"]:
                    return parse_exit(state)
                async with self._stream("POST", f"/containers/{handle}/wait", {}) as read:
                    while await read():
                        pass
            except EngineUnavailable as error:
                reconnect.check(error)
                await asyncio.sleep(RECONNECT_INTERVAL_S)

    async def stop(self, handle: str, grace_s: float) -> None:
        grace = math.ceil(grace_s)
        with suppress(NoSuchContainer):
            try:
                async with asyncio.timeout(grace + STOP_MARGIN_S):
                    await self.call(lambda: self.connect().stop(handle, timeout=grace))
            except (TimeoutError, EngineUnavailable):
                await self.call(lambda: self._kill(handle))

    def _kill(self, handle: str) -> None:
        with suppress(docker.errors.APIError):  # 409: the container has exited
            self.connect().kill(handle)

    async def remove(self, handle: str) -> None:
        await self.call(lambda: self._remove(handle))

    def _remove(self, handle: str) -> None:
        self._remove_container(handle)
        self._networks.remove_of(handle)

    def _remove_container(self, handle: str) -> None:
        self._pids.pop(handle, None)
        with _map_docker_errors(), suppress(docker.errors.NotFound):
            try:
                self.connect().remove_container(handle, v=True, force=True)
            except docker.errors.APIError as error:
                if error.status_code != requests.codes.conflict:  # conflict: a removal is in progress
                    raise

    @property
    def images(self) -> "DockerImages":
        """Return the port for pulling images, over the same client."""
        return DockerImages(self)

    async def find(self, installation: str, host: str) -> list[FoundContainer]:
        filters = {"label": label_filters(installation, host)}
        rows = await self.call(lambda: self.connect().containers(all=True, filters=filters))
        await self.call(lambda: self._networks.restore(self.connect(), f"{installation}/{host}", rows))
        return [parse_container(row) for row in rows]

    async def usage(self, handle: str) -> ContainerUsage:
        usage = await asyncio.to_thread(self._measure_known, handle)
        if usage is None:
            pid = (await self._state(handle))["Pid"]
            if not pid:
                raise NoSuchContainer(f"{handle[:12]} has exited")
            self._pids[handle] = (pid, started_at(pid))
            usage = await asyncio.to_thread(measure_processes, pid)
        return usage

    def _measure_known(self, handle: str) -> ContainerUsage | None:
        """Return what the container uses, without the daemon; None if its process is not known, or has ended."""
        pid, start = self._pids.get(handle, (0, 0))
        return measure_processes(pid) if start and started_at(pid) == start else None

    async def probe(self) -> EngineInfo:
        return parse_engine_info(await self.call(lambda: self.connect().info()))

    async def inspect(self, container: str) -> Mapping[str, Any]:
        """Return the engine's description of any container, also one that is not of a job. Raises NoSuchContainer."""
        return dict(await self.call(lambda: self.connect().inspect_container(container)))

    async def _state(self, handle: str) -> dict[str, Any]:
        """Return the state of a container that was started. Raises NoSuchContainer."""
        state: dict[str, Any] = (await self.call(lambda: self.connect().inspect_container(handle)))["State"]
        if not was_started(state):
            raise NoSuchContainer(f"{handle[:12]} was never started")
        return state

    def connect(self) -> docker.APIClient:
        """Return the client.

        It connects on first use, which asks the daemon for its version. Call it from a thread only.
        """
        _check_socket(self._settings.base_url)
        with self._connect_lock:
            if self._api_client is None:
                self._api_client = docker.APIClient(
                    base_url=self._settings.base_url,
                    version="auto",
                    timeout=self._settings.call_timeout_s,
                    max_pool_size=self._threads,
                )
            return self._api_client

    async def call(self, call: Callable[[], T]) -> T:
        def call_mapped() -> T:
            with _map_docker_errors():
                return call()

        return await asyncio.get_running_loop().run_in_executor(self.pool, call_mapped)

    def _stream(self, method: str, path: str, params: dict[str, Any]) -> AbstractAsyncContextManager[ReadBytes]:
        return open_stream(self.pool, lambda: self.open_response(method, path, params), _map_docker_errors)

    def open_response(
        self, method: str, path: str, params: dict[str, Any], headers: Mapping[str, str] | None = None
    ) -> requests.Response:
        """Open a response whose body follows over any time. docker-py's own reader would mix the two streams."""
        client = self.connect()
        url = f"{client.base_url}/v{client.api_version}{path}"
        timeout = self._settings.call_timeout_s
        response: requests.Response = client.request(
            method, url, params=params, headers=headers, stream=True, timeout=timeout
        )
        if not response.ok:
            docker.errors.create_api_error_from_http_exception(requests.HTTPError(response=response))
        connection = getattr(response.raw.connection, "sock", None)
        if connection is not None:
            connection.settimeout(None)  # the daemon has answered; from here on, silence means that the job is quiet
        return response


class DockerImages:
    """The images of a Docker engine. `runner.engines.docker_replies` parses what the daemon answers to a pull."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine

    async def inspect(self, reference: ImageReference) -> LocalImage | None:
        try:
            found = await self._engine.call(lambda: self._engine.connect().inspect_image(reference.text))
        except NoSuchContainer:
            return None
        return LocalImage(found["Id"], manifest_digest(found.get("RepoDigests") or (), reference) or found["Id"])

    async def pull(self, reference: ImageReference, login: RegistryLogin | None) -> AsyncGenerator[PullProgress]:
        parser = PullProgressParser()
        params = {"fromImage": reference.name, "tag": reference.version}

        def open_response() -> requests.Response:
            headers = _registry_auth(self._engine.connect(), reference.registry, login)
            return self._engine.open_response("POST", "/images/create", params, headers)

        try:
            async with open_stream(self._engine.pool, open_response, _map_docker_errors) as read:
                while data := await read():
                    for progress in parser.feed(data):
                        yield progress
        except (EngineUnavailable, PullFailed):
            raise
        except EngineError as error:
            raise classify_pull_failure(str(error)) from error
        if await self.inspect(reference) is None:
            raise PullFailed(PullFailure.INTERRUPTED, "the engine ended the pull without the image")

    async def remove(self, image_id: str) -> bool:
        try:
            await self._engine.call(lambda: self._engine.connect().remove_image(image_id))
        except EngineUnavailable:
            raise
        except NoSuchContainer:
            return True
        except EngineError:  # 409: a container uses it, or somebody else gave it a second name
            return False
        return True

    async def free_bytes(self) -> int | None:
        folder = str((await self._engine.call(lambda: self._engine.connect().info()))["DockerRootDir"])
        try:
            return (await asyncio.to_thread(shutil.disk_usage, folder)).free
        except OSError:
            return None


def _find_runtime(client: docker.APIClient, wanted: RuntimeName) -> str:
    """Return the daemon's name of a runtime. Raises EngineError if it has none: it may have lost it since `probe`."""
    for runtime in parse_runtimes(client.info()):
        if runtime.name == wanted:
            return runtime.engine_name
    raise EngineError(f"Docker has no runtime {wanted}: install it (docs/hosts.md), or change runtime in endpoint.toml")


def _registry_auth(client: docker.APIClient, registry: str, login: RegistryLogin | None) -> dict[str, str]:
    """Return the header with the login: the given one, else that of Docker's config.json, which is read again."""
    if login is not None:
        entry = {"username": login.username, "password": login.password, "serveraddress": registry}
        return {"X-Registry-Auth": docker.auth.encode_header(entry).decode("ascii")}
    try:
        client.reload_config()
        header = docker.auth.get_config_header(client, registry)
    except docker.errors.DockerException as error:  # a credential helper that fails
        raise PullFailed(PullFailure.LOGIN_REFUSED, f"Docker's config.json gives no login: {error}") from error
    return {"X-Registry-Auth": header.decode("ascii") if isinstance(header, bytes) else header} if header else {}


def _check_socket(url: str) -> None:
    """Raise OSError if no daemon listens. docker-py detects it too, but then leaves its socket open."""
    if url.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(url.removeprefix("unix://"))
