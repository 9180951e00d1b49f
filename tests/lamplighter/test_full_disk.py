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

from bus.connection import open_edge
from bus.port import BusError, Unreachable
from bus.server import serving
from lamplighter.cli.broker import KeptBroker
from lamplighter.cli.logs import configure
from lamplighter.cli.supervisor import Ledger, born
from tests.broker import Broker, until
from tests.bus.samples import key, recorded
from tests.chaos import disk

FULL = "/dev/full"  # every write there fails as on a full disk
DISK_MB = 64


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    disk.needed()
    with disk.small(tmp_path / "data", DISK_MB):
        yield tmp_path / "data"


def test_a_log_line_that_finds_no_room_is_lost_and_its_writer_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(FULL, "w", buffering=1) as full, monkeypatch.context() as patched:  # noqa: PTH123 - a device
        patched.setattr("sys.stderr", full)
        configure("info", "json")
        try:
            structlog.get_logger().warning("written on a full disk")
        finally:
            structlog.reset_defaults()
        with pytest.raises(OSError, match="No space left"):
            full.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # what is still in its buffer can go


async def test_children_that_cannot_be_noted_are_kept_and_those_noted_before_are_not_forgotten(small: Path) -> None:
    Ledger(small).note("edge", os.getpid())
    before = (small / "pids.json").read_bytes()
    ballast = disk.fill(small)
    Ledger(small).note("edge", os.getppid())
    assert (small / "pids.json").read_bytes() == before
    ballast.unlink()
    assert born(os.getpid()) is not None


async def test_a_broker_on_a_full_disk_is_started_again_when_there_is_room_and_not_before(small: Path) -> None:
    server = Broker(small / "broker")
    async with serving(server), open_edge(server.settings("edge")) as bus, anyio.create_task_group() as tasks:
        tasks.start_soon(KeptBroker(server, Ledger(small), small).run)
        await bus.records.create(key("before"), recorded("before"))
        first, ballast = server.pid, disk.fill(small)

        with anyio.fail_after(60), suppress(Unreachable):
            for number in count():
                await bus.records.create(key(f"more-{number}"), recorded(text="x" * 2000))
        assert (await bus.link.health()).halted
        assert server.pid == first
        ballast.unlink()

        async def stores() -> bool:
            try:
                await bus.records.create(key("after"), recorded("after"))
            except BusError:
                return False
            return True

        await until(stores, within_s=60)
        assert server.pid != first
        assert await bus.records.read(key("before")) is not None
        tasks.cancel_scope.cancel()


def test_an_up_that_finds_no_room_says_so_in_one_line(small: Path) -> None:
    disk.fill(small)
    argv = [sys.executable, "-m", "lamplighter", "up", "--port", "0", "--data", str(small), "--engine", "process"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (3, False), done.stderr
    assert "make room there" in done.stderr.strip().splitlines()[-1]
