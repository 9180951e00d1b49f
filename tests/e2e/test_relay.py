"""A host that only a relay can switch: broker, edge, relay and runner are real, the power driver is a program."""

import json
import secrets
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge.core.clock import utc_now
from edge.owners.api_keys import ApiKeyStore
from lamplighter import api
from schemas.credentials import Scope
from tests.e2e.test_power import DRIVER_PROGRAM, ScriptedMachine, state
from tests.support.installation import RunningInstallation, ServiceProcess, run_new_installation, wait_until_ready

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningInstallation]:
    (tmp_path / "lamplighter.toml").write_text('[hosts.gpu-1]\ndriver = "relay"\nmin_on = 0.5\nidle_after = 1.0\n')
    async with run_new_installation(tmp_path, "process", None) as running:
        yield running
        print(running.installation.tail())  # noqa: T201 - shown by pytest when the test failed


@pytest.fixture
async def relay(running: RunningInstallation, tmp_path: Path) -> AsyncIterator[ServiceProcess]:
    """Return a relay that is not started, with a settings file of its own, as on another machine."""
    place = tmp_path / "lan"
    place.mkdir()
    verbs = {
        verb: json.dumps([sys.executable, "-c", DRIVER_PROGRAM, str(tmp_path), verb]) for verb in ("on", "off", "state")
    }
    argv = "".join(f"{verb} = {words}\n" for verb, words in verbs.items())
    (place / "lamplighter.toml").write_text(f'[hosts.gpu-1]\ndriver = "command"\n{argv}')
    ring = ApiKeyStore(running.bus.api_keys, utc_now, secrets.token_bytes, time.monotonic)
    key = (await ring.create("lan", (Scope.RELAY,))).text
    urls = json.dumps([running.installation.url])
    environ = {"LAMPLIGHTER_RELAY__URLS": urls, "LAMPLIGHTER_RELAY__KEY": key}
    process = ServiceProcess("relay", environ, place / "relay.log")
    yield process
    await process.stop()
    print((place / "relay.log").read_text())  # noqa: T201


@pytest.mark.long(39)
async def test_a_relay_lights_a_host_and_puts_it_out(
    running: RunningInstallation, relay: ServiceProcess, tmp_path: Path
) -> None:
    machine = ScriptedMachine(running, tmp_path)
    await running.installation.edge.kill()
    await relay.start()  # it dials until an edge answers
    await running.installation.start_edge()
    await wait_until_ready(running.ann)
    assert (await running.admin.call(api.set_power("gpu-1", "on", None))).hold["want"] == "on"
    await machine.wait_for_calls(["on"])
    await machine.boot()
    await state(running, "online")
    assert (await running.ann.submit("echo", text="by relay", wait=True)).status == "succeeded"
    await relay.kill()
    await relay.start()
    await running.admin.call(api.set_power("gpu-1", "off", None))
    await machine.wait_for_calls(["on", "off"])
    await machine.power_off()
    await state(running, "off")
