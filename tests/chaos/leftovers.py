"""What must be gone once every job has ended, as a table of checks."""

import os
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping
from pathlib import Path

import anyio.to_thread
from msgspec import Struct

from bus.interface import Bus
from bus.nats import wire
from bus.nats.jetstream import ApiResponse, JetStreamClient
from bus.nats.topology import JOBS, STATE, STREAMS
from schemas.job import PRIORITIES
from tests.support.installation import Installation

LANE_NAMES = {wire.lane_consumer("stamped", priority) for priority in PRIORITIES}
QUEUES = ("JOBS", "DELIVERIES")


class _ConsumerNames(Struct, frozen=True):
    durable_name: str = ""


class _ConsumerInfo(Struct, frozen=True):
    name: str
    config: _ConsumerNames


class _ConsumerList(ApiResponse, frozen=True):
    consumers: tuple[_ConsumerInfo, ...] | None = None


async def _messages(_: Installation, bus: Bus) -> list[str]:
    js = _jetstream(bus)
    return [subject for stream in QUEUES for subject in await js.list_subjects(stream, ">")]


async def _containers(installation: Installation, _: Bus) -> list[str]:
    return [str(found) for host in installation.runners for found in await installation.containers(host)]


async def _files(installation: Installation, _: Bus) -> list[str]:
    """Folders of attempts, partial downloads and partial uploads."""
    folder = installation.folder
    patterns = ("*/jobs/*", "*/cache/*.part", "*/processes/*", "edge/assets/tmp/*/*", "edge/uploads/*")
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    return [str(path.relative_to(folder)) for path in found if path.name != "lock"]


async def _consumers(_: Installation, bus: Bus) -> list[str]:
    """Ephemeral consumers without a client, and lanes of no pool. The edge's index has one consumer of STATE."""
    js = _jetstream(bus)
    found = []
    for stream in STREAMS:
        listed = (await js.call(f"CONSUMER.LIST.{stream.name}", {}, _ConsumerList)).consumers or ()
        passing = [one.name for one in listed if not one.config.durable_name]
        if len(passing) > (stream is STATE):
            found.append(f"{stream.name}: {passing}")
        if stream is JOBS:
            found += [one.name for one in listed if one.config.durable_name not in LANE_NAMES]
    return found


async def list_ephemeral_consumers(bus: Bus) -> int:
    """Return how many consumers of all streams are not durable."""
    js = _jetstream(bus)
    lists = [(await js.call(f"CONSUMER.LIST.{stream.name}", {}, _ConsumerList)).consumers or () for stream in STREAMS]
    return sum(not one.config.durable_name for listed in lists for one in listed)


def _jetstream(bus: Bus) -> JetStreamClient:
    """Return the JetStream client of the bus: no port offers what only a test asks."""
    return bus.job_queue._jetstream  # type: ignore[attr-defined]


async def _processes(installation: Installation, _: Bus) -> list[str]:
    """Processes that name this installation's folder and are not its broker, edges or runners."""
    ours = (*installation.edges.values(), *installation.runners.values())
    expected = {os.getpid(), installation.server.pid, *(process.pid for process in ours if process.was_started)}
    return await anyio.to_thread.run_sync(_unknown_processes, str(installation.folder).encode(), expected)


def _unknown_processes(folder: bytes, expected: Container[int | None]) -> list[str]:
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            description = (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
        except OSError:
            continue  # it has just ended
        if folder in description and int(place.name) not in expected:
            found.append(f"process {place.name}: {description[:200]!r}")
    return found


LEFTOVER_CHECKS: Mapping[str, Callable[[Installation, Bus], Awaitable[list[str]]]] = {
    "message": _messages,
    "container": _containers,
    "file": _files,
    "consumer": _consumers,
    "process": _processes,
}


async def find_leftovers(installation: Installation, bus: Bus, checks: Iterable[str] = LEFTOVER_CHECKS) -> list[str]:
    """Return what `checks` find, in words. The installation's own processes must be running."""
    return [f"{kind}: {one}" for kind in checks for one in await LEFTOVER_CHECKS[kind](installation, bus)]
