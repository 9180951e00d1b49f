"""docs/examples/ws_flow.py against real processes: the desktop flow while the GPU host is off at first."""

import hashlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
import websockets
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

from schemas.job import JobKey
from tests.support.installation import ROOT, RunningInstallation, run_new_installation

FLOW = ROOT / "docs" / "examples" / "ws_flow.py"

pytestmark = pytest.mark.timeout(120)


class ProgramOutput:
    """The lines that the example prints, as they arrive."""

    def __init__(self, process: Process) -> None:
        assert process.stdout is not None
        self._text = TextReceiveStream(process.stdout)
        self._rest = ""
        self.seen: list[str] = []

    async def next(self) -> str:
        with anyio.fail_after(60):
            while "\n" not in self._rest:
                self._rest += await self._text.receive()
        line, _, self._rest = self._rest.partition("\n")
        self.seen.append(line)
        return line

    async def until(self, start: str) -> str:
        while not (line := await self.next()).startswith(start):
            pass
        return line


def results(folder: Path) -> list[bytes]:
    """Return what the example downloaded, except the job's own answer."""
    return [path.read_bytes() for path in folder.glob("talk-1-*") if path.name != "talk-1-output.json"]


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningInstallation]:
    """Run an edge where echo serves the HeyGem clients."""
    async with run_new_installation(tmp_path, "process", None, LAMPLIGHTER_HEYGEM__ENDPOINT="echo") as running:
        yield running
        print(running.installation.tail())  # noqa: T201 - shown by pytest when the test failed


async def test_hash_submit_offline_online_upload_progress_result_download(running: RunningInstallation, tmp_path: Path):
    film = tmp_path / "film.mp4"
    film.write_bytes(os.urandom(300_000))
    digest = hashlib.sha256(film.read_bytes()).hexdigest()
    key = running.ann._http.headers["Authorization"].removeprefix("Bearer ")
    argv = [sys.executable, str(FLOW), running.installation.url, key, "heygem_submit", "talk-1", f"file={film}"]
    async with await anyio.open_process(argv, cwd=tmp_path, stderr=sys.stderr) as example:
        lines = ProgramOutput(example)
        assert (await lines.next()).startswith("offline: 任务已排队，请等待约2分钟")
        waiting = await running.ann.job("talk-1")
        assert (waiting.status, waiting.missing) == ("scheduled", (f"sha256:{digest}",))
        await running.installation.start_runner()
        await lines.until("uploaded film.mp4")
        await lines.until("100%")
        await lines.until("result talk-1-")
        assert await example.wait() == 0
    assert results(tmp_path) == [film.read_bytes()]
    history = await running.bus.job_store.history(JobKey("ann", "talk-1"))
    assert history[-1].record.job.status == "succeeded"


@pytest.mark.parametrize(
    ("key", "words", "said"),
    [
        ("lamp_wrong", ("echo", "talk-2", "file={file}"), "the key is missing or not valid"),
        ("", ("echo", "talk-3", "nofield={file}"), "参数无效"),
        ("", ("echo", "talk-4", "file={file}.gone"), "No such file"),
        ("", (), "python ws_flow.py URL KEY"),
    ],
)
async def test_what_cannot_be_done_ends_it_with_words_and_no_traceback(
    running: RunningInstallation, tmp_path: Path, key: str, words: tuple[str, ...], said: str
):
    film = tmp_path / "film.mp4"
    film.write_bytes(b"film")
    key = key or running.ann._http.headers["Authorization"].removeprefix("Bearer ")
    argv = [sys.executable, str(FLOW), running.installation.url, key, *(word.format(file=film) for word in words)]
    with anyio.fail_after(30):
        ended = await anyio.run_process(argv, cwd=tmp_path, check=False)
    assert ended.returncode == 1
    assert said in ended.stderr.decode()
    assert "Traceback" not in ended.stderr.decode()


async def test_a_refused_handshake_is_no_error_in_the_log(running: RunningInstallation):
    with pytest.raises(websockets.InvalidStatus):
        async with websockets.connect(running.installation.url.replace("http", "ws", 1) + "/v1/events"):
            pass
    await running.installation.edge.stop()
    assert "ERROR" not in running.installation.edge.log.read_text()
