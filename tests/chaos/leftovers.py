"""What must not be there any more once every job has ended, as one table of places to look."""

import os
from collections.abc import Awaitable, Callable, Container, Mapping
from pathlib import Path

import anyio.to_thread
from msgspec import Struct

from bus import subjects
from bus.jetstream import Answer, JetStream
from bus.port import Bus
from bus.topology import JOBS, STATE, STREAMS
from schemas.words import PRIORITIES
from tests.e2e.installation import Installation

LANES = {subjects.lane("stamped", priority) for priority in PRIORITIES}
QUEUES = ("JOBS", "DELIVERIES")


class _Config(Struct, frozen=True):
    durable_name: str = ""


class _Consumer(Struct, frozen=True):
    name: str
    config: _Config


class _Consumers(Answer, frozen=True):
    consumers: tuple[_Consumer, ...] | None = None


async def _messages(_: Installation, bus: Bus) -> list[str]:
    js = _jetstream(bus)
    return [subject for stream in QUEUES for subject in await js.subjects(stream, ">")]


async def _containers(installation: Installation, _: Bus) -> list[str]:
    return [str(found) for host in installation.runners for found in await installation.containers(host)]


async def _files(installation: Installation, _: Bus) -> list[str]:
    """Folders of attempts, half downloads and half uploads."""
    folder = installation.folder
    patterns = ("*/jobs/*", "*/cache/*.part", "*/processes/*", "edge/assets/tmp/*/*", "edge/uploads/*")
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    return [str(path.relative_to(folder)) for path in found if path.name != "lock"]


async def _consumers(_: Installation, bus: Bus) -> list[str]:
    """Streams of clients that went, and lanes of nobody. The edge's index reads STATE, for as long as it lives."""
    js = _jetstream(bus)
    found = []
    for stream in STREAMS:
        listed = (await js.api(f"CONSUMER.LIST.{stream.name}", {}, _Consumers)).consumers or ()
        passing = [one.name for one in listed if not one.config.durable_name]
        if len(passing) > (stream is STATE):
            found.append(f"{stream.name}: {passing}")
        if stream is JOBS:
            found += [one.name for one in listed if one.config.durable_name not in LANES]
    return found


async def passing_consumers(bus: Bus) -> int:
    """How many consumers there are that are not durable, of every stream."""
    js = _jetstream(bus)
    lists = [(await js.api(f"CONSUMER.LIST.{stream.name}", {}, _Consumers)).consumers or () for stream in STREAMS]
    return sum(not one.config.durable_name for listed in lists for one in listed)


def _jetstream(bus: Bus) -> JetStream:
    """What the bus is made of: there is no port for what only a test asks."""
    return bus.queue._js  # type: ignore[attr-defined,no-any-return]


async def _processes(installation: Installation, _: Bus) -> list[str]:
    """Whatever names this installation's folder and is not one of the processes that are meant to be there."""
    ours = (installation.edge, *installation.runners.values())
    meant = {os.getpid(), installation.server.pid, *(process.pid for process in ours if process.started)}
    return await anyio.to_thread.run_sync(_strangers, str(installation.folder).encode(), meant)


def _strangers(folder: bytes, meant: Container[int | None]) -> list[str]:
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
