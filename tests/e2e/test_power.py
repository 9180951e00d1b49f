"""A dark host wakes because of a job, runs it, and goes dark when idle: real processes, a switch that is a program."""

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

# The switch: `on` and `off` note that they were pressed, `state` says whether the machine has power.
SWITCH = """
import pathlib, sys
folder, verb = pathlib.Path(sys.argv[1]), sys.argv[2]
if verb == "state":
    sys.exit(0 if (folder / "powered").exists() else 1)
with (folder / "pressed").open("a") as log:
    log.write(verb + chr(10))
"""


class ScriptedMachine:
    """The box behind the switch: power means that its runner runs."""

    def __init__(self, lit: RunningInstallation, folder: Path) -> None:
        self._lit = lit
        self._folder = folder

    @property
    def pressed(self) -> list[str]:
        log = self._folder / "pressed"
        return log.read_text().split() if log.exists() else []

    async def press_comes(self, presses: list[str]) -> None:
        async def come() -> bool:
            return self.pressed == presses

        await wait_for(come, timeout_s=60)  # an edge judges by what it has watched for 30 s itself

    async def boot(self) -> None:
        (self._folder / "powered").touch()
        await self._lit.installation.start_runner()

    async def go_dark(self) -> None:
        await self._lit.installation.runners["gpu-1"].stop()
        (self._folder / "powered").unlink()


async def host(lit: RunningInstallation) -> dict[str, Any]:
    found: dict[str, Any] = await lit.admin.call(api.get_json("/v1/hosts/gpu-1"))
    return found


async def state(lit: RunningInstallation, wanted: str) -> dict[str, Any]:
    """Wait until the host stands in this state."""

    async def stands() -> dict[str, Any] | None:
        seen = await host(lit)
        return seen if seen["state"] == wanted else None

    found: dict[str, Any] = await wait_for(stands)
    return found


@pytest.fixture
async def lit(tmp_path: Path) -> AsyncIterator[RunningInstallation]:
    verbs = {verb: json.dumps([sys.executable, "-c", SWITCH, str(tmp_path), verb]) for verb in ("on", "off", "state")}
    rules = "min_on = 0.5\nidle_after = 1.0\nprice = { per_hour = 36.0 }\n"
    argv = "".join(f"{verb} = {words}\n" for verb, words in verbs.items())
    (tmp_path / "lamplighter.toml").write_text(f'[hosts.gpu-1]\ndriver = "command"\n{argv}{rules}')
    async with run_new_installation(tmp_path, "process", None) as lit:
        yield lit
        print(lit.installation.tail())  # noqa: T201 - shown by pytest when the test failed


@pytest.mark.long(68)
async def test_a_job_lights_a_dark_host_and_idleness_puts_it_out(lit: RunningInstallation, tmp_path: Path) -> None:
    machine = ScriptedMachine(lit, tmp_path)
    await machine.boot()  # it was here once, so that the edge knows what it offers
    await state(lit, "online")
    await machine.press_comes(["off"])
    await machine.go_dark()
    await state(lit, "off")

    jobs = [await lit.ann.submit("echo", text=str(number)) for number in range(3)]
    await machine.press_comes(["off", "on"])
    await wait_for_reason(lit, jobs[0].id, "host_waking", "host_booting")
    await machine.boot()
    done = [await lit.ann.wait(job.id) for job in jobs]
    assert [job.output.data["text"] for job in done if job.output] == ["0", "1", "2"]
    await machine.press_comes(["off", "on", "off"])
    await machine.go_dark()
    dark = await state(lit, "off")
    states = [change["state"] for change in dark["history"]]
    assert states[-6:] == ["off", "waking", "online", "draining", "stopping", "off"]
    assert dark["wake_median_s"] > 0

    async def counted() -> dict[str, Any] | None:
        found: dict[str, Any] = await lit.admin.call(api.get_json("/v1/usage"))
        return found if found["jobs"] == 3 else None

    used = await wait_for(counted)
    assert 0 < used["hours_on"] == pytest.approx(used["cost"]["amount"] / 36.0)
    assert [share["endpoint"] for share in used["by"]] == ["echo"]


@pytest.mark.long(39)
async def test_an_owners_hold_keeps_it_dark_and_lights_it(lit: RunningInstallation, tmp_path: Path) -> None:
    machine = ScriptedMachine(lit, tmp_path)
    await lit.admin.call(api.set_power("gpu-1", "on", None))
    await machine.press_comes(["on"])
    await machine.boot()
    assert (await state(lit, "online"))["hold"] == {"want": "on", "until": None}
    done = await lit.ann.submit("echo", text="held on", wait=True)
    assert done.status == "succeeded"
    await lit.admin.call(api.set_power("gpu-1", "off", None))
    await machine.press_comes(["on", "off"])
    await machine.go_dark()
    await state(lit, "off")
    job = await lit.ann.submit("echo", text="while held off")
    await wait_for_reason(lit, job.id, "host_blocked", "host_off")
    assert machine.pressed == ["on", "off"]
    await lit.admin.call(api.set_power("gpu-1", "auto", None))
    await machine.press_comes(["on", "off", "on"])
    await machine.boot()
    assert (await lit.ann.wait(job.id)).status == "succeeded"
