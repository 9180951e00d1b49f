"""RunPod's official client, in a process and an environment of its own (requirements-runpod.lock).

A test calls `running()`, which installs the environment and starts this file in it. The process makes the client's
objects and calls their methods; the test holds proxies of them. What the client raises is raised in the test.
"""

import asyncio
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from multiprocessing.managers import BaseManager, IteratorProxy  # type: ignore[attr-defined]  # typeshed lacks it
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class RunpodEndpoint:
    """`runpod.Endpoint` at the server whose `/v2` is at `url`."""

    def __init__(self, url: str, key: str, name: str) -> None:
        import runpod

        runpod.endpoint_url_base = url
        self._endpoint = runpod.Endpoint(name, api_key=key)
        self.run_sync = self._endpoint.run_sync
        self.health = self._endpoint.health
        self.purge_queue = self._endpoint.purge_queue

    def run(self, request: dict[str, Any]) -> "RunpodJob":
        return RunpodJob(self._endpoint.run(request))


class RunpodJob:
    """What `run` of an endpoint returns."""

    def __init__(self, job: Any) -> None:
        self._job = job
        self.status = job.status
        self.output = job.output
        self.stream = job.stream
        self.cancel = job.cancel

    def id(self) -> str:
        return str(self._job.job_id)


class AsyncRunpodEndpoint:
    """`runpod.AsyncioEndpoint` in an event loop of its own; a call returns when the client's coroutine has ended."""

    def __init__(self, url: str, key: str, name: str) -> None:
        import runpod

        runpod.endpoint_url_base = url
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._endpoint = self._wait(self._open(key, name))

    async def _open(self, key: str, name: str) -> Any:
        import aiohttp
        import runpod

        return runpod.AsyncioEndpoint(name, aiohttp.ClientSession(), api_key=key)

    def _wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def run(self, given: dict[str, Any]) -> "AsyncRunpodJob":
        return AsyncRunpodJob(self._wait(self._endpoint.run(given)), self._wait)

    def health(self) -> Any:
        return self._wait(self._endpoint.health())

    def purge_queue(self) -> Any:
        return self._wait(self._endpoint.purge_queue())


class AsyncRunpodJob:
    """What `run` of an asyncio endpoint returns."""

    def __init__(self, job: Any, wait: Any) -> None:
        self._job = job
        self._wait = wait

    def id(self) -> str:
        return str(self._job.job_id)

    def status(self) -> Any:
        return self._wait(self._job.status())

    def output(self, timeout: int) -> Any:
        return self._wait(self._job.output(timeout=timeout))

    def cancel(self) -> Any:
        return self._wait(self._job.cancel())

    def stream(self) -> Iterator[Any]:
        pieces = self._job.stream()
        while True:
            try:
                yield self._wait(anext(pieces))
            except StopAsyncIteration:
                return


class RunpodClients(BaseManager):
    """`Endpoint(url, key, name)` and `AsyncEndpoint(url, key, name)` make objects in the other process."""


ENDPOINT = ("run", "run_sync", "health", "purge_queue")
JOB = ("id", "status", "output", "stream", "cancel")
RunpodClients.register("Endpoint", RunpodEndpoint, exposed=ENDPOINT, method_to_typeid={"run": "Job"})
RunpodClients.register("AsyncEndpoint", AsyncRunpodEndpoint, exposed=ENDPOINT, method_to_typeid={"run": "Job"})
RunpodClients.register("Job", exposed=JOB, method_to_typeid={"stream": "Stream"}, create_method=False)
RunpodClients.register("Stream", proxytype=IteratorProxy, create_method=False)


def ensure_python() -> Path:
    """Return the environment's Python; the environment is made if need be."""
    from tests.support.package_registry import run_download  # not in the other process

    install = [sys.executable, "-I", str(ROOT / "deploy/install.py")]
    if subprocess.run([*install, "--check", "runpod"], check=False).returncode:
        run_download([*install, "runpod"])
    return ROOT / ".cache/runpod/bin/python"


@contextmanager
def run_clients() -> Iterator[Any]:
    """The clients of a new process."""
    argv = [ensure_python(), "-I", "-W", "ignore", __file__]
    key = secrets.token_hex(16)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(f"{key}\n")
        process.stdin.flush()
        clients = RunpodClients(("127.0.0.1", int(process.stdout.readline())), authkey=key.encode())
        clients.connect()
        try:
            yield clients
        finally:
            process.stdin.close()  # what it ends at


def serve() -> None:
    key = sys.stdin.readline().strip()
    server = RunpodClients(("127.0.0.1", 0), authkey=key.encode()).get_server()
    threading.Thread(target=end_with_stdin, daemon=True).start()
    sys.stdout.write(f"{server.address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


def end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    serve()
