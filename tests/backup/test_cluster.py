"""A backup of one broker put into three, and one of three put into one: real servers on loopback."""

from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path

import pytest
from msgspec import Struct
from msgspec.structs import replace

from bus.backup import KEPT
from bus.connection import open_edge, open_keeper
from bus.jetstream import Answer, JetStream
from bus.port import Bus, BusError, Entry
from bus.settings import BrokerSettings
from bus.topology import STATE, ensure
from schemas.job import JobKey
from tests.backup.place import installed, lamplighter
from tests.broker import broker, until
from tests.bus.samples import key, recorded
from tests.bus.three import Three, three
from tests.cluster.brokers import leader, whole

JOBS = 120
WHOLE_S = 60.0
READERS = 20

History = dict[JobKey, list[Entry]]


async def filled(bus: Bus) -> None:
    """Jobs with one to three events each, some deleted."""
    for number in range(JOBS):
        name = key(f"job-{number}")
        revision = await bus.records.create(name, recorded(name.id, text="x" * 2000))
        for _ in range(number % 3):
            revision = await bus.records.update(name, recorded(name.id), revision)
        if number % 11 == 0:
            await bus.records.delete(name, revision)


async def histories(bus: Bus) -> History:
    return {name: await bus.records.history(name) for name in await bus.records.keys()}


async def copies(bus: Bus) -> set[int]:
    """On how many servers the streams of a backup are kept."""
    js = bus.queue._js  # type: ignore[attr-defined]
    return {(await js.info(name)).config.num_replicas for name in KEPT}


async def kept(file: Path, folder: Path, settings: BrokerSettings) -> None:
    done = await lamplighter("backup", file, "--config", installed(folder, settings))
    assert done.returncode == 0, done.stderr


async def restored(file: Path, folder: Path, settings: BrokerSettings, *more: str) -> None:
    done = await lamplighter("restore", file, "--config", installed(folder, settings), *more)
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
        assert await bus.records.create(key("next"), recorded("next")) > last


class _At(Struct, frozen=True):
    leader: str = ""


class _Reader(Struct, frozen=True):
    cluster: _At = _At()


class _Readers(Answer, frozen=True):
    consumers: tuple[_Reader, ...] = ()


async def reading_at(bus: Bus, server: str, opened: AsyncExitStack) -> None:
    """Read the records until one of the readers is served by `server`."""
    js: JetStream = bus.queue._js  # type: ignore[attr-defined]
    for _ in range(READERS):
        changes = await opened.enter_async_context(aclosing(bus.records.changes()))
        await anext(changes)
        found = await js.api(f"CONSUMER.LIST.{STATE.name}", {}, _Readers)
        if server in {one.cluster.leader for one in found.consumers}:
            return
    raise AssertionError(f"none of {READERS} readers is at {server}")


async def outlives_its_leader(there: Three, before: History, file: Path) -> None:
    """The server that leads the records goes, and an edge's reader with it: a backup is taken all the same."""
    async with open_edge(there.settings) as bus, AsyncExitStack() as opened:
        await until(partial(whole, bus), within_s=WHOLE_S)
        gone = await leader(bus)
        await reading_at(bus, gone, opened)
        await there.kill(gone)

        async def answers() -> bool:
            try:
                return await histories(bus) == before
            except BusError:
                return False

        await until(answers, within_s=WHOLE_S)
        await kept(file, there.folder, replace(there.settings, replicas=3))
        there.start(gone)
        await until(partial(whole, bus), within_s=WHOLE_S)


@pytest.mark.long(41)
@pytest.mark.timeout(240)
async def test_a_backup_goes_from_one_broker_into_three_and_from_three_into_one(tmp_path: Path):
    up, down = tmp_path / "up.zip", tmp_path / "down.zip"
    async with broker(tmp_path / "one") as server:
        async with open_edge(server.settings("edge")) as bus:
            await filled(bus)
            before = await histories(bus)
        await kept(up, tmp_path / "one", server.settings("edge"))
    async with three(tmp_path / "three") as there:
        settings = replace(there.settings, replicas=3)
        async with open_keeper(settings) as (bus, _):
            await ensure(bus.queue._js, 3)  # type: ignore[attr-defined]
            await bus.records.create(key("in-the-way"), recorded("in-the-way"))
        refused = await lamplighter("restore", up, "--config", installed(tmp_path / "three", settings))
        assert (refused.returncode, "not empty" in refused.stderr) == (4, True)
        await restored(up, tmp_path / "three", settings, "--replace")
        await assert_there(settings, before, 3)
        await outlives_its_leader(there, before, down)
        await goes_on(settings, before)
    async with broker(tmp_path / "other") as server:
        await restored(down, tmp_path / "other", server.settings("edge"))
        await assert_there(server.settings("edge"), before, 1)
        await goes_on(server.settings("edge"), before)
