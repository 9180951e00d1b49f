"""The power of the broker's disk is cut: acknowledged messages survive, but only with our sync setting."""

import os
import signal
from pathlib import Path

import anyio

from bus.interface import Bus, BusError
from bus.open import open_edge
from bus.server.process import run_server
from schemas.job import Pointer, Priority
from tests.powercut.power_switch import powered_disk, require_fuse
from tests.powercut.unsynced_disk import NameSync
from tests.support.bus_samples import make_key, make_record
from tests.support.nats_broker import BrokerProcess

ACKNOWLEDGED = 150  # of each kind, before the power is cut
WRITERS = 8


class DefaultBroker(BrokerProcess):
    """nats-server with its default setting: it syncs every two minutes."""

    def config(self) -> str:
        made = super().config()
        assert "sync_interval: always" in made
        return made.replace("sync_interval: always", "")


class Acknowledged:
    """What the broker acknowledged: records, and pointers in the queue."""

    def __init__(self) -> None:
        self.records: set[str] = set()
        self.pointers: set[str] = set()
        self.enough = anyio.Event()

    async def write(self, bus: Bus, writer: int) -> None:
        """Write jobs one after the other until the broker no longer answers."""
        number = 0
        try:
            while True:
                name = f"job-{writer}-{number}"
                await bus.job_store.create(make_key(name), make_record(name))
                self.records.add(name)
                await bus.job_queue.publish(Pointer("echo", Priority.NORMAL, "me", name, 1))
                self.pointers.add(name)
                number += 1
                if len(self.pointers) >= ACKNOWLEDGED:
                    self.enough.set()
        except BusError:
            return


async def cut_under_load(where: Path, kind: type[BrokerProcess], names: NameSync) -> tuple[Acknowledged, Acknowledged]:
    """Return what was acknowledged before the cut, and what of it exists after the restart."""
    said, there = Acknowledged(), Acknowledged()
    broker = kind(where / "disk" / "broker")
    async with (
        powered_disk(where, names) as plug,
        run_server(broker),
        open_edge(broker.settings("edge")) as bus,
        anyio.create_task_group() as tasks,
    ):
        await bus.job_queue.ensure_consumers(["echo"])
        for writer in range(WRITERS):
            tasks.start_soon(said.write, bus, writer)
        await said.enough.wait()
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGSTOP)
        await plug.cut()
        await broker.kill()
        tasks.cancel_scope.cancel()
    async with powered_disk(where, names), run_server(broker), open_edge(broker.settings("edge")) as bus:
        there.records = {found.id for found in await bus.job_store.keys()}
        there.pointers = {pointer.id for pointer in await bus.job_queue.list_pending()}
    return said, there


async def test_with_our_setting_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    require_fuse()
    said, there = await cut_under_load(tmp_path, BrokerProcess, NameSync.JOURNAL)
    assert len(said.records) >= ACKNOWLEDGED
    assert said.records <= there.records
    assert said.pointers <= there.pointers


async def test_with_the_default_setting_acknowledged_jobs_are_lost(tmp_path: Path) -> None:
    require_fuse()
    said, there = await cut_under_load(tmp_path, DefaultBroker, NameSync.JOURNAL)
    assert said.records - there.records, "the default kept everything: then this disk forgets nothing"


async def test_the_broker_syncs_no_folders_so_its_file_system_must(tmp_path: Path) -> None:
    """docs/promises.md therefore asks for a file system with a journal (ext4, XFS, ZFS, Btrfs) under the broker."""
    require_fuse()
    said, there = await cut_under_load(tmp_path, BrokerProcess, NameSync.FOLDER)
    assert said.records - there.records, "nats-server syncs its folders now: take the demand out of docs/promises.md"
