"""The running controller: its own loop, real driver programs that start and stop a process, and a fast clock."""

import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pytest

from edge.hosts.registry import HostNotice
from edge.power.controller import PowerController
from edge.power.driver_calls import PowerDependencies
from edge.power.drivers.generic import CommandDriver
from schemas.host import HostHeartbeat
from schemas.host_config import CommandHostConfig
from schemas.power import PowerState as S
from tests.support.edge_services import START, FakeBusServicesRig, ManualClock, fake_bus_services, observe_fleet
from tests.support.fake_bus.broker import FakeBroker
from tests.support.wait import wait_for

SPEED = 100.0

SWITCH = """
import os, pathlib, signal, subprocess, sys
pid_file, verb = pathlib.Path(sys.argv[1]), sys.argv[2]
pid = int(pid_file.read_text()) if pid_file.exists() else 0
if verb == "on" and not pid:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    pid_file.write_text(str(child.pid))
if verb == "off" and pid:
    os.kill(pid, signal.SIGTERM)
    pid_file.unlink()
if verb == "state":
    print("on" if pid else "off")
"""


class FastTime(ManualClock):
    """A clock that runs a hundred times as fast."""

    def __init__(self) -> None:
        super().__init__()
        self._began = time.monotonic()

    def __call__(self) -> datetime:
        return START + timedelta(seconds=self.seconds())

    def seconds(self) -> float:
        return (time.monotonic() - self._began) * SPEED


class LampDriver:
    """A host that is a process, and the controller that powers it."""

    def __init__(self, made: FakeBusServicesRig, folder: Path) -> None:
        self.world = made
        self.pid_file = folder / "pid"
        script = folder / "switch.py"
        script.write_text(SWITCH)
        argv = {verb: (sys.executable, str(script), str(self.pid_file), verb) for verb in ("on", "off", "state")}
        declared = {"gpu-1": CommandHostConfig(**argv, min_on=60.0, idle_after=60.0, boot_timeout=3600.0)}
        drivers = {"gpu-1": CommandDriver("gpu-1", declared["gpu-1"], os.environ)}
        ids = count()
        dependencies = PowerDependencies(
            table=made.bus.power_records,
            fleet=observe_fleet(made),
            declared=declared,
            drivers=drivers,
            now=made.time,
            monotonic=made.time.seconds,
            new_id=lambda: f"call-{next(ids)}",
            random=lambda: 0.5,
            tick_interval_s=0.05,
            poll_interval_s=0.1,
        )
        self.power = PowerController(dependencies)
        self.notices: list[HostNotice] = []
        self.power.subscribe(self.notices.append)

    async def runner(self) -> None:
        """Send heartbeats while the process lives, and obey the power record."""
        while True:
            at = self.world.time()
            record = self.power.record("gpu-1")
            if self.pid_file.exists():
                draining = record is not None and record.state in {S.DRAINING, S.STOPPING}
                here = HostHeartbeat(host="gpu-1", incarnation="life-1", at=at, since=at, draining=draining)
                await self.world.bus.heartbeats.put("gpu-1", here)
            await self.world.hosts.refresh()
            await anyio.sleep(0.02)

    async def until(self, state: S) -> None:
        async def there() -> bool:
            record = self.power.record("gpu-1")
            return record is not None and record.state is state

        await wait_for(there, timeout_s=20)


@pytest.fixture
async def lamp(tmp_path: Path) -> AsyncIterator[LampDriver]:
    fast = FastTime()
    async with (
        fake_bus_services(tmp_path, FakeBroker(fast.seconds), fast) as made,
        _running(LampDriver(made, tmp_path)) as lamp,
    ):
        yield lamp
    if lamp.pid_file.exists():
        with suppress(ProcessLookupError):
            os.kill(int(lamp.pid_file.read_text()), 15)


@asynccontextmanager
async def _running(lamp: LampDriver) -> AsyncIterator[LampDriver]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lamp.power.run)
        tasks.start_soon(lamp.runner)
        await lamp.until(S.OFF)
        yield lamp
        tasks.cancel_scope.cancel()


async def test_a_job_starts_the_process_and_its_end_stops_it(lamp: LampDriver) -> None:
    job = await lamp.world.submit()
    await lamp.until(S.WAKING)
    await lamp.until(S.ONLINE)
    pid = int(lamp.pid_file.read_text())
    os.kill(pid, 0)
    await lamp.world.finish(job)
    await lamp.until(S.OFF)
    assert not lamp.pid_file.exists()
    record = lamp.power.record("gpu-1")
    assert record is not None
    assert [change.state for change in record.history] == ["waking", "online", "draining", "stopping", "off"]
    assert [notice.kind for notice in lamp.notices] == ["host_waking"]


async def test_an_override_that_is_written_during_a_tick_is_shown_at_once(
    lamp: LampDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    observe = lamp.power._fleet.observe

    async def observe_and_override(*given: Any, **options: Any) -> Any:
        fleet = await observe(*given, **options)
        await lamp.power.set_override("gpu-1", "off")
        return fleet

    monkeypatch.setattr(lamp.power._fleet, "observe", observe_and_override)
    await lamp.power.tick()
    record = lamp.power.record("gpu-1")
    assert record is not None
    assert record.override is not None
    assert record.override.want == "off"


async def test_an_override_powers_on_at_once_and_off_by_a_drain(lamp: LampDriver) -> None:
    await lamp.power.set_override("gpu-1", "on")
    await lamp.until(S.ONLINE)
    await lamp.power.set_override("gpu-1", "off")
    await lamp.until(S.OFF)
    record = lamp.power.record("gpu-1")
    assert record is not None
    assert [change.state for change in record.history][-3:] == ["draining", "stopping", "off"]
