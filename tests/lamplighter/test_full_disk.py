"""A disk that is full under what the command line starts: nobody ends for it, and the broker comes back with room."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import anyio
import pytest
import structlog

from bus.interface import BrokerUnreachable, BusError
from bus.open import open_edge
from bus.server.process import run_server
from lamplighter.cli.log_output import configure_logging
from lamplighter.cli.supervisor import BrokerSupervisor, ChildRegistry, read_process_identity
from tests.support import small_disk
from tests.support.bus_samples import make_key, make_record
from tests.support.nats_broker import BrokerProcess
from tests.support.wait import wait_for

FULL = "/dev/full"  # every write there fails as on a full disk
DISK_MB = 64


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    small_disk.require_mounts()
    with small_disk.mount_small_disk(tmp_path / "data", DISK_MB):
        yield tmp_path / "data"


def test_a_log_line_that_finds_no_room_is_lost_and_its_writer_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(FULL, "w", buffering=1) as full, monkeypatch.context() as patched:  # noqa: PTH123 - a device
        patched.setattr("sys.stderr", full)
        configure_logging("info", "json")
        try:
            structlog.get_logger().warning("written on a full disk")
        finally:
            structlog.reset_defaults()
        with pytest.raises(OSError, match="No space left"):
            full.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # what is still in its buffer can go


async def test_children_that_cannot_be_noted_are_kept_and_those_noted_before_are_not_forgotten(small: Path) -> None:
    ChildRegistry(small).record("edge", os.getpid())
    before = (small / "pids.json").read_bytes()
    ballast = small_disk.fill_disk(small)
    ChildRegistry(small).record("edge", os.getppid())
    assert (small / "pids.json").read_bytes() == before
    ballast.unlink()
    assert read_process_identity(os.getpid()) is not None


async def test_a_broker_on_a_full_disk_is_started_again_when_there_is_room_and_not_before(small: Path) -> None:
    server = BrokerProcess(small / "broker")
    async with run_server(server), open_edge(server.settings("edge")) as bus, anyio.create_task_group() as tasks:
        tasks.start_soon(BrokerSupervisor(server, ChildRegistry(small), small).run)
        await bus.job_store.create(make_key("before"), make_record("before"))
        first, ballast = server.pid, small_disk.fill_disk(small)

        with anyio.fail_after(60), suppress(BrokerUnreachable):
            for number in count():
                await bus.job_store.create(make_key(f"more-{number}"), make_record(text="x" * 2000))
        assert (await bus.health.status()).write_failed
        assert server.pid == first
        ballast.unlink()

        async def stores() -> bool:
            try:
                await bus.job_store.create(make_key("after"), make_record("after"))
            except BusError:
                return False
            return True

        await wait_for(stores, timeout_s=60)
        assert server.pid != first
        assert await bus.job_store.read(make_key("before")) is not None
        tasks.cancel_scope.cancel()


def test_an_up_that_finds_no_room_says_so_in_one_line(small: Path) -> None:
    small_disk.fill_disk(small)
    argv = [sys.executable, "-m", "lamplighter", "up", "--port", "0", "--data", str(small), "--engine", "process"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (3, False), done.stderr
    assert "make room there" in done.stderr.strip().splitlines()[-1]
