"""Programs of the fake engine that know how to wait: they load, listen at the real socket, and then do as told."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from runner.catalogue import Kind
from runner.engines.memory import Box, Program
from runner.engines.port import WARM_ENV
from schemas.container import START_SOCKET
from schemas.endpoint import Endpoint, Resources, Timeouts

Load = Callable[[Box], Awaitable[None]]


def kind(name: str, folder: Path, **resources: int | bool) -> Kind:
    """An endpoint that is started ahead."""
    wants = Resources(disk_mb=0, memory_mb=16, **resources)
    return Kind(Endpoint(name=name, image=name, warm=True, resources=wants, timeouts=Timeouts(grace_s=0.2)), folder)


def warm(work: Program, load: Load | None = None) -> Program:
    """`work`, which waits for its job first where it was started ahead, and says in its log that it did."""

    async def program(box: Box) -> int:
        if load is not None:
            await load(box)
        if box.spec.env.get(WARM_ENV) == "1":
            await waked(box)
            box.write(b"woken\n")
        return await work(box)

    return program


async def waked(box: Box) -> None:
    """One line at start.sock, after which the door is closed, as jobkit does it."""
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
