"""A host that is off starts for a job, runs it, and is switched off when idle: real processes, a scripted driver."""

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lamplighter import api
from tests.support.installation import RunningInstallation, run_new_installation
from tests.support.job_checks import wait_for_reason
from tests.support.wait import wait_for

pytestmark = pytest.mark.timeout(240)

# The driver program: `on` and `off` log the call, `state` says whether the machine has power.
DRIVER_PROGRAM = """
import pathlib, sys
folder, verb = pathlib.Path(sys.argv[1]), sys.argv[2]
if verb == "state":
    sys.exit(0 if (folder / "powered").exists() else 1)
with (folder / "pressed").open("a") as log:
    log.write(verb + chr(10))
"""


class ScriptedMachine:
    """The machine behind the driver program: its runner runs while it has power."""

    def __init__(self, running: RunningInstallation, folder: Path) -> None:
        self._lit = running
        self._folder = folder

    @property
    def calls(self) -> list[str]:
        log = self._folder / "pressed"
        return log.read_text().split() if log.exists() else []

    async def wait_for_calls(self, expected: list[str]) -> None:
        async def has_calls() -> bool:
            return self.calls == expected

        await wait_for(has_calls, timeout_s=60)  # an edge decides only after 30 s of its own observation

    async def boot(self) -> None:
        (self._folder / "powered").touch()
        await self._lit.installation.start_runner()

    async def power_off(self) -> None:
        await self._lit.installation.runners["gpu-1"].stop()
        (self._folder / "powered").unlink()


async def host(running: RunningInstallation) -> dict[str, Any]:
    found: dict[str, Any] = await running.admin.call(api.get_json("/v1/hosts/gpu-1"))
    return found


async def state(running: RunningInstallation, wanted: str) -> dict[str, Any]:
    """Wait until the host is in this power state."""

    async def stands() -> dict[str, Any] | None:
        seen = await host(running)
        return seen if seen["state"] == wanted else None

    found: dict[str, Any] = await wait_for(stands)
    return found


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningInstallation]:
    verbs = {
        verb: json.dumps([sys.executable, "-c", DRIVER_PROGRAM, str(tmp_path), verb]) for verb in ("on", "off", "state")
    }
    rules = "min_on = 0.5\nidle_after = 1.0\nprice = { per_hour = 36.0 }\n"
    argv = "".join(f"{verb} = {words}\n" for verb, words in verbs.items())
    (tmp_path / "lamplighter.toml").write_text(f'[hosts.gpu-1]\ndriver = "command"\n{argv}{rules}')
    async with run_new_installation(tmp_path, "process", None) as running:
        yield running
        print(running.installation.tail())  # noqa: T201 - shown by pytest when the test failed


@pytest.mark.long(68)
async def test_a_job_lights_a_dark_host_and_idleness_puts_it_out(running: RunningInstallation, tmp_path: Path) -> None:
    machine = ScriptedMachine(running, tmp_path)
    await machine.boot()  # it runs once, so that the edge knows what it offers
    await state(running, "online")
    await machine.wait_for_calls(["off"])
    await machine.power_off()
    await state(running, "off")

    jobs = [await running.ann.submit("echo", text=str(number)) for number in range(3)]
    await machine.wait_for_calls(["off", "on"])
    await wait_for_reason(running, jobs[0].id, "host_waking", "host_booting")
    await machine.boot()
    done = [await running.ann.wait(job.id) for job in jobs]
    assert [job.output.data["text"] for job in done if job.output] == ["0", "1", "2"]
    await machine.wait_for_calls(["off", "on", "off"])
    await machine.power_off()
    power_record = await state(running, "off")
    states = [change["state"] for change in power_record["history"]]
    assert states[-6:] == ["off", "waking", "online", "draining", "stopping", "off"]
    assert power_record["wake_median_s"] > 0

    async def counted() -> dict[str, Any] | None:
        found: dict[str, Any] = await running.admin.call(api.get_json("/v1/usage"))
        return found if found["jobs"] == 3 else None

    used = await wait_for(counted)
    assert 0 < used["hours_on"] == pytest.approx(used["cost"]["amount"] / 36.0)
    assert [share["endpoint"] for share in used["by"]] == ["echo"]


@pytest.mark.long(39)
async def test_an_owners_hold_keeps_it_dark_and_lights_it(running: RunningInstallation, tmp_path: Path) -> None:
    machine = ScriptedMachine(running, tmp_path)
    await running.admin.call(api.set_power("gpu-1", "on", None))
    await machine.wait_for_calls(["on"])
    await machine.boot()
    assert (await state(running, "online"))["hold"] == {"want": "on", "until": None}
    done = await running.ann.submit("echo", text="held on", wait=True)
    assert done.status == "succeeded"
    await running.admin.call(api.set_power("gpu-1", "off", None))
    await machine.wait_for_calls(["on", "off"])
    await machine.power_off()
    await state(running, "off")
    job = await running.ann.submit("echo", text="while held off")
    await wait_for_reason(running, job.id, "host_blocked", "host_off")
    assert machine.calls == ["on", "off"]
    await running.admin.call(api.set_power("gpu-1", "auto", None))
    await machine.wait_for_calls(["on", "off", "on"])
    await machine.boot()
    assert (await running.ann.wait(job.id)).status == "succeeded"
