"""Real clips, fetched once, and one run of the engine that several tests look at."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import samples as fetching
from lipsync.engine import PreviewEngine, load
from tests.images.job_process import IMAGES, make_job, parse_messages, read_output_data, run_program

ROOT = IMAGES.parent
MAIN = IMAGES / "preview" / "main.py"
Run = Callable[..., SimpleNamespace]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.preview)
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def samples() -> Path:
    """face.mp4, no_face.mp4, speech.wav, speech2.wav."""
    folder = ROOT / ".cache" / "samples"
    fetching.fetch(folder)
    return folder


@pytest.fixture(scope="session")
def engine() -> PreviewEngine:
    return load()


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """run(video, audio, **options): the image's program as a process; exit code, messages, output folder, data."""

    def call(video: Path, audio: Path, **options: object) -> SimpleNamespace:
        folder = tmp_path_factory.mktemp("job")
        names = {"video": f"video{video.suffix}", "audio": f"audio{audio.suffix}"}
        files = {names["video"]: video.read_bytes(), names["audio"]: audio.read_bytes()}
        make_job(folder, {**names, **options}, **files)
        with run_program(MAIN, folder) as process:
            out, err = process.communicate(timeout=280)
        return SimpleNamespace(
            code=process.returncode,
            said=parse_messages(out),
            log=err.decode(),
            out=folder / "out",
            data=read_output_data(folder) if process.returncode == 0 else None,
        )

    return call


@pytest.fixture(scope="session")
def spoken(run: Run, samples: Path) -> SimpleNamespace:
    """The sample face saying the sample speech."""
    done = run(samples / "face.mp4", samples / "speech.wav")
    assert done.code == 0, done.log
    return done
