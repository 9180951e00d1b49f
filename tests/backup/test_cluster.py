"""A backup of one broker put into three, and one of three put into one: real servers on loopback."""

from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path

import pytest
from msgspec import Struct
from msgspec.structs import replace

from bus.interface import Bus, BusError, VersionedRecord
from bus.nats.jetstream import ApiResponse, JetStreamClient
from bus.nats.snapshots import BACKUP_STREAMS
from bus.nats.topology import STATE, ensure_streams
from bus.open import open_edge, open_for_backup
from bus.settings import BrokerSettings
from schemas.job import JobKey
from tests.cluster.broker_cluster import find_leader, is_replicated
from tests.support.broker_trio import BrokerTrio, run_broker_trio
from tests.support.bus_samples import make_key, make_record
from tests.support.command import run_lamplighter, write_settings
from tests.support.nats_broker import run_broker
from tests.support.wait import wait_for

JOBS = 120
WHOLE_S = 60.0
READERS = 20

History = dict[JobKey, list[VersionedRecord]]


async def filled(bus: Bus) -> None:
    """Jobs with one to three events each, some deleted."""
    for number in range(JOBS):
        name = make_key(f"job-{number}")
        revision = await bus.job_store.create(name, make_record(name.id, text="x" * 2000))
        for _ in range(number % 3):
            revision = await bus.job_store.update(name, make_record(name.id), revision)
        if number % 11 == 0:
            await bus.job_store.delete(name, revision)


async def histories(bus: Bus) -> History:
    return {name: await bus.job_store.history(name) for name in await bus.job_store.keys()}


async def copies(bus: Bus) -> set[int]:
    """On how many servers the streams of a backup are kept."""
    js = bus.job_queue._jetstream  # type: ignore[attr-defined]
    return {(await js.stream_info(name)).config.num_replicas for name in BACKUP_STREAMS}


async def kept(file: Path, folder: Path, settings: BrokerSettings) -> None:
    done = await run_lamplighter("backup", file, "--config", write_settings(folder, settings))
    assert done.returncode == 0, done.stderr


async def restored(file: Path, folder: Path, settings: BrokerSettings, *more: str) -> None:
    done = await run_lamplighter("restore", file, "--config", write_settings(folder, settings), *more)
    assert done.returncode == 0, done.stderr


async def assert_there(settings: BrokerSettings, before: History, servers: int) -> None:
    """All of it, with its revisions, on so many servers."""
    async with open_edge(settings) as bus:
        assert await copies(bus) == {servers}
        assert await histories(bus) == before


async def goes_on(settings: BrokerSettings, before: History) -> None:
    """What is written now comes behind all that was."""
    async with open_edge(settings) as bus:
        last = max(entry.revision for entries in before.values() for entry in entries)
        assert await bus.job_store.create(make_key("next"), make_record("next")) > last


class _At(Struct, frozen=True):
    leader: str = ""


class _Reader(Struct, frozen=True):
    cluster: _At = _At()


class _Readers(ApiResponse, frozen=True):
    consumers: tuple[_Reader, ...] = ()


async def reading_at(bus: Bus, server: str, opened: AsyncExitStack) -> None:
    """Read the records until one of the readers is served by `server`."""
    js: JetStreamClient = bus.job_queue._jetstream  # type: ignore[attr-defined]
    for _ in range(READERS):
        changes = await opened.enter_async_context(aclosing(bus.job_store.changes()))
        await anext(changes)
        found = await js.call(f"CONSUMER.LIST.{STATE.name}", {}, _Readers)
        if server in {one.cluster.leader for one in found.consumers}:
            return
    raise AssertionError(f"none of {READERS} readers is at {server}")


async def outlives_its_leader(there: BrokerTrio, before: History, file: Path) -> None:
    """The server that leads the records goes, and an edge's reader with it: a backup is taken all the same."""
    async with open_edge(there.settings) as bus, AsyncExitStack() as opened:
        await wait_for(partial(is_replicated, bus), timeout_s=WHOLE_S)
        gone = await find_leader(bus)
        await reading_at(bus, gone, opened)
        await there.kill(gone)

        async def answers() -> bool:
            try:
                return await histories(bus) == before
            except BusError:
                return False

        await wait_for(answers, timeout_s=WHOLE_S)
        await kept(file, there.folder, replace(there.settings, replicas=3))
        there.start(gone)
        await wait_for(partial(is_replicated, bus), timeout_s=WHOLE_S)


@pytest.mark.long(41)
@pytest.mark.timeout(240)
async def test_a_backup_goes_from_one_broker_into_three_and_from_three_into_one(tmp_path: Path):
    up, down = tmp_path / "up.zip", tmp_path / "down.zip"
    async with run_broker(tmp_path / "one") as server:
        async with open_edge(server.settings("edge")) as bus:
            await filled(bus)
            before = await histories(bus)
        await kept(up, tmp_path / "one", server.settings("edge"))
    async with run_broker_trio(tmp_path / "three") as there:
        settings = replace(there.settings, replicas=3)
        async with open_for_backup(settings) as (bus, _):
            await ensure_streams(bus.job_queue._jetstream, 3)  # type: ignore[attr-defined]
            await bus.job_store.create(make_key("in-the-way"), make_record("in-the-way"))
        refused = await run_lamplighter("restore", up, "--config", write_settings(tmp_path / "three", settings))
        assert (refused.returncode, "not empty" in refused.stderr) == (4, True)
        await restored(up, tmp_path / "three", settings, "--replace")
        await assert_there(settings, before, 3)
        await outlives_its_leader(there, before, down)
        await goes_on(settings, before)
    async with run_broker(tmp_path / "other") as server:
        await restored(down, tmp_path / "other", server.settings("edge"))
        await assert_there(server.settings("edge"), before, 1)
        await goes_on(server.settings("edge"), before)
