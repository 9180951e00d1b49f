"""Containers of a Docker engine, through docker-py in threads. The only file that knows that library.

What the daemon does and does not do is written down, measured, in research/runner.md 1.4; the odd steps below
are answers to it.
"""

import asyncio
import math
import os
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager, suppress
from typing import Any, Self, TypeVar

import docker
import docker.errors
import requests
import urllib3
from msgspec import Struct

from runner.engines.folders import prepare
from runner.engines.logs import Cursor, Frames
from runner.engines.port import (
    WARM_ENV,
    Chunk,
    EngineError,
    EngineGone,
    EngineInfo,
    Exit,
    Found,
    Mark,
    NoSuchContainer,
    Spec,
    StartFailed,
)
from runner.engines.reading import Patience, Read, reading
from runner.engines.replies import engine_info, exit_of, found, start_failure, takes_profile, was_started
from runner.engines.sandbox import Injection, container_config, owned_by
from runner.engines.seccomp import profile
from runner.engines.starting import started

T = TypeVar("T")

NOBODY = 65534
PAUSE_S = 0.05  # between two looks at a daemon that is coming back
HANG_S = 10.0  # how much longer than its grace a stop may take


class DockerSettings(Struct, frozen=True):
    """Which engine, and how much of it. `streams`: containers followed at once; two threads each."""

    base_url: str = "unix:///var/run/docker.sock"
    injection: Injection = "device_request"
    streams: int = 32
    call_timeout_s: int = 30
    reconnect_s: float = 60.0  # how long a restarting daemon is waited for


@contextmanager
def _border() -> Iterator[None]:
    """Foreign errors become ours here."""
    try:
        yield
    except docker.errors.NotFound as error:
        raise NoSuchContainer(error.explanation) from error
    except docker.errors.APIError as error:
        raise EngineError(error.explanation or str(error)) from error
    except (requests.RequestException, urllib3.exceptions.HTTPError, docker.errors.DockerException, OSError) as error:
        raise EngineGone(f"Docker does not answer: {error}; is the daemon running?") from error


class DockerEngine:
    """Jobs in containers, hardened as `sandbox` says, run as the runner's own user, or nobody where that is root."""

    name = "docker"

    def __init__(self, settings: DockerSettings) -> None:
        self._settings = settings
        self._injection = settings.injection
        self._threads = 2 * settings.streams + 8
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="docker")
        self._connected: docker.APIClient | None = None
        self._connecting = threading.Lock()
        self._profiled: bool | None = None  # whether the daemon takes our seccomp profile, once it was asked
        self._owner = (os.getuid(), os.getgid()) if os.getuid() else (NOBODY, NOBODY)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)  # what was cancelled is being undone there
        if self._connected is not None:
            self._connected.close()

    def inject(self, way: Injection) -> None:
        """Give cards to containers in this way from now on."""
        self._injection = way

    async def start(self, spec: Spec) -> str:
        return await started(self._pool, lambda: self._start(spec), self._discard)

    def _start(self, spec: Spec) -> str:
        """Create and start in one thread, so that a cancellation cannot come between them."""
        try:
            prepare(spec.job_dir, self._owner, warm=spec.env.get(WARM_ENV) == "1", mounted=True)
        except OSError as error:
            raise StartFailed("engine_error", f"the job's folder cannot be made ready: {error}") from error
        handle = ""
        try:
            with _border():
                client = self._client()
                ours = profile() if self._takes_profile(client) else None
                config = container_config(spec, "{}:{}".format(*self._owner), self._injection, ours)
                handle = str(client.create_container_from_config(config)["Id"])
                client.start(handle)
        except EngineGone:
            raise
        except EngineError as error:
            if handle:
                self._remove(handle)
            raise StartFailed(start_failure(str(error)), str(error)) from error
        return handle

    def _takes_profile(self, client: docker.APIClient) -> bool:
        """Asked once, as the version of its API is: a runner that outlives an update goes on as before it."""
        if self._profiled is None:
            self._profiled = takes_profile(client.info())
        return self._profiled

    def _discard(self, handle: str) -> None:
        with suppress(EngineError):
            self._remove(handle)

    async def output(self, handle: str, since: Mark | None) -> AsyncIterator[Chunk]:
        cursor, patience = Cursor(since), Patience(self._settings.reconnect_s)
        while True:
            try:
                # Asked before reading: a follow may end early, but what is read after the end is all there is.
                exited = not (await self._state(handle))["Running"]
                async with aclosing(self._log(handle, cursor, follow=not exited)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                if exited:
                    return
            except EngineGone as gone:
                patience.check(gone)
            await asyncio.sleep(PAUSE_S)

    async def _log(self, handle: str, cursor: Cursor, *, follow: bool) -> AsyncGenerator[Chunk]:
        frames = Frames()
        wanted = {"stdout": 1, "stderr": 1, "timestamps": 1, "follow": int(follow), "since": cursor.rewind()}
        async with self._stream("GET", f"/containers/{handle}/logs", wanted) as read:
            while data := await read():
                for chunk in cursor.take(frames.feed(data)):
                    yield chunk
        if not follow:
            for chunk in cursor.close():
                yield chunk

    async def wait(self, handle: str) -> Exit:
        patience = Patience(self._settings.reconnect_s)
        while True:
            try:
                state = await self._state(handle)
                if not state["Running"]:
                    return exit_of(state)
                async with self._stream("POST", f"/containers/{handle}/wait", {}) as read:
                    while await read():
                        pass
            except EngineGone as gone:
                patience.check(gone)
                await asyncio.sleep(PAUSE_S)

    async def stop(self, handle: str, grace_s: float) -> None:
        grace = math.ceil(grace_s)
        with suppress(NoSuchContainer):
            try:
                async with asyncio.timeout(grace + HANG_S):
                    await self._call(lambda: self._client().stop(handle, timeout=grace))
            except (TimeoutError, EngineGone):
                await self._call(lambda: self._kill(handle))

    def _kill(self, handle: str) -> None:
        with suppress(docker.errors.APIError):  # 409: it has exited
            self._client().kill(handle)

    async def remove(self, handle: str) -> None:
        await self._call(lambda: self._remove(handle))

    def _remove(self, handle: str) -> None:
        with _border(), suppress(docker.errors.NotFound):
            try:
                self._client().remove_container(handle, v=True, force=True)
            except docker.errors.APIError as error:
                if error.status_code != requests.codes.conflict:  # else somebody removes it already
                    raise

    async def find(self, installation: str, host: str) -> list[Found]:
        wanted = {"label": owned_by(installation, host)}
        rows = await self._call(lambda: self._client().containers(all=True, filters=wanted))
        return [found(row) for row in rows]

    async def probe(self) -> EngineInfo:
        return engine_info(await self._call(lambda: self._client().info()))

    async def _state(self, handle: str) -> dict[str, Any]:
        """State of a container that was started."""
        state: dict[str, Any] = (await self._call(lambda: self._client().inspect_container(handle)))["State"]
        if not was_started(state):
            raise NoSuchContainer(f"{handle[:12]} was never started")
        return state

    def _client(self) -> docker.APIClient:
        """Connected on first use, for that asks the daemon for its version; from a thread only."""
        _knock(self._settings.base_url)
        with self._connecting:
            if self._connected is None:
                self._connected = docker.APIClient(
                    base_url=self._settings.base_url,
                    version="auto",
                    timeout=self._settings.call_timeout_s,
                    max_pool_size=self._threads,
                )
            return self._connected

    async def _call(self, ask: Callable[[], T]) -> T:
        def bordered() -> T:
            with _border():
                return ask()

        return await asyncio.get_running_loop().run_in_executor(self._pool, bordered)

    def _stream(self, method: str, path: str, params: dict[str, Any]) -> AbstractAsyncContextManager[Read]:
        return reading(self._pool, lambda: self._open(method, path, params), _border)

    def _open(self, method: str, path: str, params: dict[str, Any]) -> requests.Response:
        """A response whose body is still to come, however long that takes; docker-py's own would mix the streams."""
        client = self._client()
        url = f"{client.base_url}/v{client.api_version}{path}"
        timeout = self._settings.call_timeout_s
        response: requests.Response = client.request(method, url, params=params, stream=True, timeout=timeout)
        if not response.ok:
            docker.errors.create_api_error_from_http_exception(requests.HTTPError(response=response))
        waiting = getattr(response.raw.connection, "sock", None)
        if waiting is not None:
            waiting.settimeout(None)  # it has answered; from here on silence is the job's
        return response


def _knock(url: str) -> None:
    """Raises OSError where nobody listens. docker-py finds out too, but then leaves its socket open."""
    if url.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as door:
            door.connect(url.removeprefix("unix://"))
