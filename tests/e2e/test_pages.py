"""The commands and programs of docs/api.md and docs/migrating.md, run against real processes."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from anyio import to_thread

from tests.e2e.conftest import process_only
from tests.e2e.test_facades import facade_settings
from tests.support.doc_pages import DOCS, read_blocks, run_block
from tests.support.installation import RunningInstallation, run_new_installation

pytestmark = [process_only, pytest.mark.timeout(150)]


@pytest.fixture(scope="module")
async def running(
    tmp_path_factory: pytest.TempPathFactory, anyio_backend: object, engine: str, engine_url: str | None
) -> AsyncIterator[RunningInstallation]:
    """Run an edge with all facades enabled, and a runner."""
    shared = tmp_path_factory.mktemp("shared")
    (shared / "temp").mkdir()
    for name in ("speech.wav", "face.mp4"):
        (shared / "temp" / name).write_bytes(name.encode())
    async with run_new_installation(
        tmp_path_factory.mktemp("pages"), engine, engine_url, **facade_settings(shared)
    ) as running:
        await running.installation.start_runner(LAMPLIGHTER_SLOTS="4")
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the working directory of a reader of the pages."""
    return tmp_path_factory.mktemp("reader")


# The commands of api.md are one script; the programs of migrating.md stand by themselves.
SHOWN = [
    ("sh", "\n".join(read_blocks(DOCS / "api.md", "sh"))),
    *(("python", text) for text in read_blocks(DOCS / "api.md", "python")),
    *((language, text) for language in ("python", "sh") for text in read_blocks(DOCS / "migrating.md", language)),
]


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: f"{shown[0]}: {shown[1].strip()[:30]}")
async def test_what_the_pages_show_runs(running: RunningInstallation, folder: Path, shown: tuple[str, str]):
    (folder / "hello.txt").write_text("hello\n")
    keys = {
        name: client._http.headers["authorization"].partition(" ")[2]
        for name, client in (("KEY", running.ann), ("ADMIN", running.admin))
    }
    done = await to_thread.run_sync(partial(run_block, *shown, folder, URL=running.installation.url, **keys))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
