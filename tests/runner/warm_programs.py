"""Programs of the fake engine that can be warm: they load, listen at the real socket, and then run."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from runner.endpoints import LocalEndpoint
from runner.engines.port import WARM_ENV
from schemas.container_protocol import START_SOCKET
from schemas.endpoint import Endpoint, Resources, Timeouts
from tests.support.fake_engine import FakeContainer, Program

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


async def wait_for_start_line(box: FakeContainer) -> None:
    """Wait for one line at start.sock and close the socket after it, as jobkit does."""
    folder = os.open(box.spec.job_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(f"/proc/self/fd/{folder}/{START_SOCKET}")
            listener.listen(1)
            listener.setblocking(False)
            box.write(b'{"type":"ready"}\n')
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            with connection:
                assert await asyncio.get_running_loop().sock_recv(connection, 64) == b"start\n"
    finally:
        os.close(folder)
        (box.spec.job_dir / START_SOCKET).unlink(missing_ok=True)
