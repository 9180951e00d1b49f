"""`lamplighter health`: what a container asks about its process."""

import os
import sys
from pathlib import Path
from subprocess import CompletedProcess

import anyio

from runner.host.health_file import HealthFile
from tests.support.served_edge import serve_edge


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
