"""`lamplighter health`: what a container asks about its process."""

import os
import sys
from pathlib import Path
from subprocess import CompletedProcess

import anyio
import pytest
from msgspec import Struct, convert, structs

from edge.settings import EdgeSettings
from lamplighter.cli.health import HealthSettings
from lamplighter.cli.relay import RelaySettings
from runner.host.health_file import HealthFile
from runner.settings import RunnerSettings
from tests.support.served_edge import serve_edge

# What the client's package imports anyway is not among them.
SLOW_IMPORTS = {"structlog", "litestar", "nats", "docker", "websockets", "rich.console"}


async def health(process: str, **settings: object) -> CompletedProcess[bytes]:
    environ = os.environ | {f"LAMPLIGHTER_{name}": str(value) for name, value in settings.items()}
    argv = [sys.executable, "-m", "lamplighter", "health", process, "--config", os.devnull]
    return await anyio.run_process(argv, check=False, env=environ)


async def test_an_edge_is_asked_where_it_listens(tmp_path: Path):
    async with serve_edge(tmp_path) as served:
        port = served.url.rpartition(":")[2]
        asked = await health("edge", BIND="0.0.0.0", PORT=port)
        assert (asked.returncode, asked.stdout) == (0, b"the edge is healthy\n")
    asked = await health("edge", PORT=port)
    assert (asked.returncode, asked.stderr.count(b"\n")) == (1, 1)
    assert b"no answer from http://127.0.0.1:" in asked.stderr


async def test_a_runner_and_a_relay_have_a_file(tmp_path: Path):
    file = tmp_path / "health"
    for process in ("runner", "relay"):
        assert b"not connected yet" in (await health(process, HEALTH_FILE=file)).stderr
    await HealthFile(file).renew()
    for process in ("runner", "relay"):
        assert (await health(process, HEALTH_FILE=file)).returncode == 0
    os.utime(file, (0, 0))
    assert (await health("runner", HEALTH_FILE=file)).returncode == 1
    assert b"health_file is not set" in (await health("relay")).stderr


@pytest.mark.parametrize("kind", [EdgeSettings, RunnerSettings, RelaySettings])
def test_it_reads_the_settings_of_the_process_itself(kind: type[Struct]):
    """Check that a default which changes there changes here too."""
    own, process = structs.asdict(HealthSettings()), convert({"host": "gpu-1"}, kind)
    shared = {name: value for name, value in own.items() if hasattr(process, name)}
    assert shared == {name: getattr(process, name) for name in shared}
    assert {"health_file", "port"} & set(shared)


async def test_it_starts_without_the_modules_of_the_processes():
    script = "import sys, lamplighter.cli.health; print(*sys.modules)"
    loaded = (await anyio.run_process([sys.executable, "-c", script])).stdout.decode().split()
    assert SLOW_IMPORTS & set(loaded) == set()
    assert not [name for name in loaded if name.endswith((".settings", ".process_setup"))]


async def test_a_settings_file_that_cannot_be_read_is_wrong_usage(tmp_path: Path):
    config = tmp_path / "lamplighter.toml"
    config.write_text("port = ")
    argv = [sys.executable, "-m", "lamplighter", "health", "edge", "--config", str(config)]
    asked = await anyio.run_process(argv, check=False)
    assert asked.returncode == 2
    assert b"is not valid TOML" in asked.stderr
