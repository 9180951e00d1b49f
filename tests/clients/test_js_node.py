"""The client for JavaScript under Node: its own tests against a real edge, its types, and its size."""

import os
import subprocess
from pathlib import Path

import pytest
from anyio import to_thread

from tests.clients.conftest import ClientWorld
from tests.support.node_packages import MODULES_DIR, ROOT, require_node_packages

PACKAGE = ROOT / "clients" / "js"
SIZE_LIMIT_BYTES = 60_000  # a page loads all of it


@pytest.fixture(scope="session", autouse=True)
def node() -> None:
    require_node_packages()


def run(*argv: str | Path, cwd: Path = PACKAGE, **environ: str) -> str:
    """Return what the program prints; it must exit with 0."""
    done = subprocess.run(
        argv, cwd=cwd, capture_output=True, text=True, timeout=100, check=False, env={**os.environ, **environ}
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


async def test_its_own_tests_pass_against_a_real_edge(world: ClientWorld, tmp_path: Path):
    said = await to_thread.run_sync(
        lambda: run("node", "--test", "--test-reporter=tap", "test/client.test.js", FILES=str(tmp_path), **world.environ())
    )
    assert "\n# fail 0" in said
    assert "\n# skipped 0" in said
