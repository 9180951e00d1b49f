"""Programs of the fake engine that can be warm: they load, listen at the real socket, and then run."""

import asyncio
import itertools
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from runner.endpoints import LocalEndpoint
from runner.engines.port import WARM_ENV
from schemas.container_protocol import OutputStream, start_socket
from schemas.endpoint import Endpoint, Resources, Timeouts
from tests.support.fake_engine import FakeContainer, Program

STREAMS: tuple[OutputStream, OutputStream] = ("stdout", "stderr")
Load = Callable[[FakeContainer], Awaitable[None]]


def warm_endpoint(name: str, folder: Path, **resources: int | bool) -> LocalEndpoint:
    """Return an endpoint with warm containers."""
    wants = Resources(disk_mb=0, memory_mb=16, **resources)
    return LocalEndpoint(
        Endpoint(name=name, image=name, warm=True, resources=wants, timeouts=Timeouts(grace_s=0.2)), folder
    )


def warm_program(work: Program, load: Load | None = None) -> Program:
    """Run `work`; a warm container waits for its job first, and writes to its log that it did."""

    async def program(box: FakeContainer) -> int:
        if load is not None:
            await load(box)
        if box.spec.env.get(WARM_ENV) == "1":
            await wait_for_start_line(box)
            box.write(b"woken\n")
        return await work(box)

    return program


def reused_program(work: Callable[[FakeContainer, Path], Awaitable[int]]) -> Program:
    """Run `work` for each job, in the job's folder, as jobkit does with `reuse=True`."""

    async def program(box: FakeContainer) -> int:
        for number in itertools.count(1):
            await wait_for_start_line(box, number)
            code = await work(box, box.spec.job_dir / str(number))
            for stream in STREAMS:
                box.write(b'{"type":"end","code":%d}\n' % code, stream)
        return 0

    return program


async def wait_for_start_line(box: FakeContainer, number: int = 0) -> None:
    """Wait for one line at the start socket and close the socket after it, as jobkit does."""
    folder = os.open(box.spec.job_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(f"/proc/self/fd/{folder}/{start_socket(number)}")
            listener.listen(1)
            listener.setblocking(False)
            for stream in STREAMS if number else STREAMS[:1]:
                box.write(b'{"type":"ready","job":%d}\n' % number, stream)
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            with connection:
                assert await asyncio.get_running_loop().sock_recv(connection, 64) == b"start\n"
    finally:
        os.close(folder)
        (box.spec.job_dir / start_socket(number)).unlink(missing_ok=True)
