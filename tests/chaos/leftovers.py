"""What must not be there any more once every job has ended, as one table of places to look."""

import os
from collections.abc import Awaitable, Callable, Container, Mapping
from pathlib import Path

import anyio.to_thread

from bus import subjects
from bus.jetstream import Answer, JetStream
from bus.port import Bus
from schemas.words import PRIORITIES
from tests.e2e.installation import Installation

POOLS = ("stamped",)


class _Names(Answer, frozen=True):
    consumers: tuple[str, ...] | None = None


async def _messages(_: Installation, bus: Bus) -> list[str]:
    return [str(pointer) for pointer in await bus.queue.waiting()]


async def _containers(installation: Installation, _: Bus) -> list[str]:
    return [str(found) for host in installation.runners for found in await installation.containers(host)]


async def _files(installation: Installation, _: Bus) -> list[str]:
    """Folders of attempts, half downloads and half uploads."""
    folder = installation.folder
    patterns = ("*/jobs/*", "*/cache/*.part", "*/processes/*", "edge/assets/tmp/*/*")
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    return [str(path.relative_to(folder)) for path in found if path.name != "lock"]


async def _consumers(_: Installation, bus: Bus) -> list[str]:
    """Streams of clients that went, and lanes of nobody. The edge's own reader of STATE is one."""
    js = bus.queue._js  # type: ignore[attr-defined]
    lanes = {subjects.lane(pool, priority) for pool in POOLS for priority in PRIORITIES}
    expected = {"FEED": 0, "JOBS": len(lanes), "KV_STATE": 1}
    names = {stream: await _names(js, stream) for stream in expected}
    found = [f"{len(held)} consumers of {name}" for name, held in names.items() if len(held) > expected[name]]
    return found + [f"lane {name}" for name in names["JOBS"] - lanes]


async def _names(js: JetStream, stream: str) -> set[str]:
    return set((await js.api(f"CONSUMER.NAMES.{stream}", {}, _Names)).consumers or ())


async def _processes(installation: Installation, _: Bus) -> list[str]:
    """Whatever names this installation's folder and is not one of the processes that are meant to be there."""
    ours = (installation.edge, *installation.runners.values())
    meant = {os.getpid(), installation.server.pid, *(process.pid for process in ours if process.started)}
    return await anyio.to_thread.run_sync(_strangers, str(installation.folder).encode(), meant)


def _strangers(folder: bytes, meant: Container[int]) -> list[str]:
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            said = (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
        except OSError:
            continue  # it ended while we looked
        if folder in said and int(place.name) not in meant:
            found.append(f"process {place.name}: {said[:200]!r}")
    return found


PLACES: Mapping[str, Callable[[Installation, Bus], Awaitable[list[str]]]] = {
    "message": _messages,
    "container": _containers,
    "file": _files,
    "consumer": _consumers,
    "process": _processes,
}


async def leftovers(installation: Installation, bus: Bus) -> list[str]:
    """All of it, in words; the installation's own processes must be running."""
    return [f"{what}: {one}" for what, look in PLACES.items() for one in await look(installation, bus)]
