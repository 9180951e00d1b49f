"""The power of the always-on server is cut, again and again, under a stream of jobs and files.

Broker and edge lose what they had not synced; the GPU host goes on. Whatever was answered 201 or 202 must exist, and
end well.
"""

import hashlib
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx2
import pytest

from bus.server.process import NatsServer
from lamplighter import AsyncClient
from schemas.job_view import JobView
from tests.powercut.power_switch import PowerSwitch, powered_disk, require_fuse
from tests.powercut.unsynced_disk import NameSync
from tests.support.installation import Installation, wait_until_ready
from tests.support.job_checks import wait_until_ended

CUTS = 2
JOBS_A_CUT = 8  # accepted before the power is cut
CLIENTS = 3
FILE_BYTES = 60_000


class PowercutClient:
    """A client that uploads a file and submits a job for it, over and over, and remembers the answers."""

    def __init__(self, http: httpx2.AsyncClient, number: int, dice: random.Random) -> None:
        self._http = http
        self._name = f"client-{number}"
        self._dice = dice
        self.files: dict[str, bytes] = {}
        self.jobs: dict[str, str] = {}

    async def run(self, tell: "anyio.abc.ObjectSendStream[str]") -> None:
        """Upload and submit without end, and repeat what fails, as any client would."""
        while True:
            data = self._dice.randbytes(FILE_BYTES)
            digest = hashlib.sha256(data).hexdigest()
            await self._insist("PUT", f"/v1/assets/{digest}", content=data)
            self.files[digest] = data
            job_id = f"{self._name}-{len(self.jobs)}"
            body = {"endpoint": "echo", "input": {"file": f"sha256:{digest}", "text": job_id}}
            await self._insist("PUT", f"/v1/jobs/{job_id}", json=body)
            self.jobs[job_id] = digest
            await tell.send(job_id)

    async def _insist(self, method: str, path: str, **body: object) -> None:
        while True:
            try:
                answer = await self._http.request(method, path, **body)
            except httpx2.TransportError:
                await anyio.sleep(0.05)
                continue
            if answer.status_code < 300:
                return
            # 422: the file was lost with the power before its 201 was sent; anything else is a defect.
            assert answer.status_code in {500, 503}, answer.text


class Power:
    """The server's disk, and the processes on it."""

    def __init__(self, where: Path, installation: Installation) -> None:
        self._where = where
        self._installation = installation

    @asynccontextmanager
    async def on(self) -> AsyncIterator[PowerSwitch]:
        """Run broker and edge; at the end cut the power of both at one moment."""
        made = self._installation
        async with powered_disk(self._where, NameSync.JOURNAL) as plug:
            await made.server.start()
            await made.start_edge(LAMPLIGHTER_DATA=str(plug.folder / "edge"))
            try:
                yield plug
                assert made.server.pid is not None
                for pid in (made.edge.pid, made.server.pid):
                    os.kill(pid, signal.SIGSTOP)
                await plug.cut()
            finally:
                with anyio.CancelScope(shield=True):
                    await made.edge.kill()
                    await made.server.kill()


@asynccontextmanager
async def powered(folder: Path) -> AsyncIterator[tuple[Installation, Power, dict[str, str]]]:
    """Run an installation whose server is on an unsynced disk, and a GPU host with a disk of its own."""
    where = folder / "server"
    made = Installation(folder, "process", None)
    made.server = NatsServer(where / "disk" / "broker")
    power = Power(where, made)
    async with powered_disk(where):
        keys = await made.open()
        await made.server.stop()
    try:
        yield made, power, keys
    finally:
        for process in made.runners.values():
            await process.kill()
        await made.clear()
        made.release_ports()


@pytest.mark.long(33)
@pytest.mark.timeout(300)
async def test_what_was_answered_outlives_the_power(tmp_path: Path) -> None:
    require_fuse()
    dice = random.Random(20261121)
    async with powered(tmp_path) as (made, power, keys):
        async with httpx2.AsyncClient(
            base_url=made.url, headers={"Authorization": f"Bearer {keys['ann']}"}, timeout=20
        ) as http:
            clients = [PowercutClient(http, number, dice) for number in range(CLIENTS)]
            said, accepted = anyio.create_memory_object_stream[str](1000)
            async with said, accepted, anyio.create_task_group() as tasks:
                for client in clients:
                    tasks.start_soon(client.run, said)
                for cut in range(CUTS):
                    async with power.on():
                        if cut == 0:
                            await made.start_runner(LAMPLIGHTER_SLOTS="2")
                        for _ in range(JOBS_A_CUT):
                            await accepted.receive()
                tasks.cancel_scope.cancel()
        async with power.on(), AsyncClient(made.url, keys["ann"], cache=tmp_path / "ann.json") as ann:
            await wait_until_ready(ann)
            for client in clients:
                for job_id, digest in client.jobs.items():
                    await assert_whole(ann, job_id, client.files[digest])


async def assert_whole(ann: AsyncClient, job_id: str, data: bytes) -> None:
    """Assert that the job ended once, with success, and that its output is its input."""
    done: JobView = await wait_until_ended(ann, job_id)
    assert (done.status, done.round) == ("succeeded", 1), done
    assert done.output is not None
    assert done.output.data["text"] == job_id
    (file,) = done.output.files
    assert file.sha256 == hashlib.sha256(data).hexdigest()
    answer = await ann._http.get(file.url)
    assert answer.content == data
