"""The services that `install` writes, started as systemd would start them: its protocol is played by the test."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from click.testing import CliRunner

from lamplighter.cli import main
from schemas.events import Adopted, Started
from tests.e2e.conftest import process_only
from tests.e2e.test_up import family_of, lamplighter
from tests.support.installation import RunningInstallation, run_new_installation
from tests.support.job_checks import events_of, read_history, submit_job, wait_until_ended, wait_until_running
from tests.support.reserved_ports import reserve_port
from tests.support.service_unit import ServiceUnit, play_unit
from tests.support.wait import wait_for

pytestmark = process_only
HOST = "gpu-1"


def install(home: Path, *words: str) -> Path:
    """Install a service of a user whose home is `home`; return its unit."""
    environ = {"HOME": str(home), "XDG_CONFIG_HOME": "", "XDG_STATE_HOME": ""}
    done = CliRunner().invoke(main, ["install", *words, "--user", "--no-start", "--json"], env=environ)
    assert done.exit_code == 0, done.output
    return home / ".config" / "systemd" / "user" / json.loads(done.stdout)["unit"]


async def test_the_edge_s_unit_serves_reports_and_stops(tmp_path: Path, engine: str):
    with reserve_port() as reserved:
        port = reserved.getsockname()[1]
    unit = install(tmp_path, "edge", "--port", str(port))
    data, log = tmp_path / ".local/state/lamplighter/edge", tmp_path / "journal"
    async with play_unit(unit, log) as service:
        await service.start()
        await service.wait_for_state("READY=1")
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            assert (await client.get("/readyz")).status_code == 200
        await service.wait_for_state("WATCHDOG=1")
        assert lamplighter(data, "jobs").returncode == 0  # the key is in the data folder
        family = family_of(service.pid)
        assert len(family) == 2  # broker and edge
        assert await service.stop() == 0
    assert list(data.rglob("*.log")) == []
    text = log.read_text()
    assert "Server is ready" in text  # the broker's log
    assert " serving " in text or "serving" in text  # the edge's log
    assert "lamp_" not in text  # no key in the journal


@pytest.fixture
async def running(tmp_path: Path, engine: str) -> AsyncIterator[RunningInstallation]:
    async with run_new_installation(tmp_path / "edge", engine, None) as running:
        yield running
        print(running.installation.tail())  # noqa: T201 - shown by pytest when the test failed


@pytest.fixture
async def runner(tmp_path: Path, running: RunningInstallation) -> AsyncIterator[ServiceUnit]:
    """Yield the runner's unit; its settings come from a drop-in with variables."""
    unit = install(tmp_path, "runner")
    environ = running.installation.runner_environ(HOST)
    async with play_unit(unit, tmp_path / "journal", **environ) as service:
        yield service


async def test_a_killed_runner_s_job_goes_on_and_is_adopted(runner: ServiceUnit, running: RunningInstallation):
    await runner.start()
    await runner.wait_for_state("READY=1")
    job = await submit_job(running, text="hello", steps=60, seconds=4)
    await wait_until_running(running, job.id)
    await runner.kill()
    await runner.start()
    await runner.wait_for_state("READY=1")
    await runner.wait_for_state("WATCHDOG=1")
    ended = await wait_until_ended(running.ann, job.id)
    entries = await read_history(running, job.id)
    assert (ended.status, len(events_of(entries, Started)), len(events_of(entries, Adopted))) == ("succeeded", 1, 1)
    assert await runner.stop() == 0


async def test_a_runner_waits_for_its_docker_engine(runner: ServiceUnit, running: RunningInstallation, tmp_path: Path):
    """As at a boot where dockerd comes later: the host is online and says why it starts nothing."""
    runner.add_environment(LAMPLIGHTER_ENGINE="docker", LAMPLIGHTER_DOCKER_SOCKET=str(tmp_path / "docker.sock"))
    await runner.start()

    async def engine_away() -> bool:
        hosts = (await running.admin._http.get("/v1/hosts")).json()["hosts"]
        return any(host["id"] == HOST and host.get("engine_away") for host in hosts)

    await wait_for(engine_away)
    assert await runner.stop() == 0
    assert not runner.has_reported("READY=1")


@pytest.mark.parametrize("role", ["runner", "relay"])
def test_a_token_that_is_refused_installs_nothing(role: str, engine: str, tmp_path: Path):
    environ = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": "", "XDG_STATE_HOME": ""}
    words = ["install", role, "--user", "--no-start", "--join", "not-a-token"]
    done = CliRunner().invoke(main, words, env=environ)
    assert (done.exit_code, "join token" in done.stderr, len(done.stderr.splitlines())) == (2, True, 1)
    assert not (tmp_path / ".config").exists()
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"join_failed.txt"}


async def test_a_relay_is_ready_when_an_edge_has_accepted_it(tmp_path: Path, running: RunningInstallation):
    made = await running.admin._http.post("/v1/keys", json={"owner": "home", "scopes": ["relay"]})
    unit = install(tmp_path, "relay")
    settings = tmp_path / ".config/lamplighter/relay.toml"
    settings.write_text(
        f'[relay]\nurls = ["{running.installation.url}"]\nkey = "{made.json()["key"]}"\n'
        '[hosts.pc]\ndriver = "command"\non = ["true"]\n'
    )
    async with play_unit(unit, tmp_path / "journal") as service:
        await service.start()
        await service.wait_for_state("READY=1")
        await service.wait_for_state("WATCHDOG=1")
        assert await service.stop() == 0
