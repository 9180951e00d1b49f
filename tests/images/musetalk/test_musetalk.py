"""The image's program as a process, with a stand-in for MuseTalk's own: results, refusals, and how it stops."""

import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge.facades.heygem.mapping import build_submission, parse_submit
from schemas.container_protocol import ErrorLine, ExitCode, ProgressLine
from schemas.endpoint import parse_endpoint
from tests.images.job_process import IMAGES, make_job, parse_messages, read_output_data, run_program

MAIN = IMAGES / "musetalk" / "main.py"
VENDOR = Path(__file__).parent / "vendor"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """MuseTalk's folder: the stand-in, and the weights that it demands."""
    folder = tmp_path / "musetalk-home"
    shutil.copytree(VENDOR, folder)
    for name in ("unet.pth", "musetalk.json"):
        (folder / "models" / "musetalkV15").mkdir(parents=True, exist_ok=True)
        (folder / "models" / "musetalkV15" / name).write_bytes(b"weights")
    return folder


def make_media(folder: Path) -> dict[str, bytes]:
    """A moving picture, a still one and a tone."""
    argv = ["ffmpeg", "-v", "error", "-f", "lavfi"]
    for source, name, more in (
        ("testsrc=size=64x48:rate=25:duration=1", "v.mp4", ["-pix_fmt", "yuv420p"]),
        ("testsrc=size=64x48:rate=1:duration=1", "p.png", ["-frames:v", "1"]),
        ("sine=frequency=300:duration=1", "a.m4a", []),
    ):
        subprocess.run([*argv, "-i", source, *more, str(folder / name)], check=True)
    return {name: (folder / name).read_bytes() for name in ("v.mp4", "p.png", "a.m4a")}


def run(tmp_path: Path, home: Path, stand_in: str = "", **given: Any) -> SimpleNamespace:
    media = make_media(tmp_path)
    job = make_job(tmp_path / "job", {"video": "v.mp4", "audio": "a.m4a"} | given, **media)
    with run_program(MAIN, job, LAMPLIGHTER_MUSETALK_HOME=str(home), STAND_IN=stand_in) as process:
        stdout, stderr = process.communicate(timeout=60)
    said = parse_messages(stdout)
    errors = [line for line in said if isinstance(line, ErrorLine)]
    return SimpleNamespace(code=process.returncode, said=said, errors=errors, job=job, log=stderr.decode())


@pytest.mark.parametrize("video", ["v.mp4", "p.png"])
def test_a_face_and_a_speech_become_a_video(tmp_path: Path, home: Path, video: str) -> None:
    done = run(tmp_path, home, video=video)
    assert done.code == 0, done.log
    data = read_output_data(done.job)
    assert (data["engine"], data["width"], data["height"], data["fps"]) == ("MuseTalk 1.5", 64, 48, 25.0)
    assert abs(data["seconds"] - 1) < 0.1
    assert sorted(path.name for path in (done.job / "out").iterdir()) == ["output.json", "result.mp4"]


def test_progress_rises_through_its_stages(tmp_path: Path, home: Path) -> None:
    done = run(tmp_path, home)
    progress = [line for line in done.said if isinstance(line, ProgressLine)]
    assert list(dict.fromkeys(line.stage for line in progress)) == ["prepare", "render", "compose"]
    fractions = [line.fraction for line in progress]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


@pytest.mark.parametrize(
    ("stand_in", "exit_code", "error"),
    [("no_face", ExitCode.BAD_INPUT, "no_face"), ("oom", ExitCode.TRY_AGAIN, "cuda_oom")],
)
def test_what_the_program_only_prints_fails_the_job(
    tmp_path: Path, home: Path, stand_in: str, exit_code: ExitCode, error: str
) -> None:
    done = run(tmp_path, home, stand_in)
    assert (done.code, [one.code for one in done.errors]) == (exit_code, [error]), done.log
    assert list((done.job / "out").iterdir()) == []


def test_a_failure_that_nobody_foresaw_is_told(tmp_path: Path, home: Path) -> None:
    (home / "models" / "musetalkV15" / "unet.pth").unlink()
    done = run(tmp_path, home)
    assert [one.code for one in done.errors] == ["musetalk_failed"]
    assert "No such file or directory: 'models/musetalkV15/unet.pth'" in done.errors[0].message


def test_what_is_no_sound_is_the_clients_fault(tmp_path: Path, home: Path) -> None:
    done = run(tmp_path, home, audio="p.png")
    assert (done.code, [one.code for one in done.errors]) == (ExitCode.BAD_INPUT, ["unreadable_audio"])


def test_without_the_program_it_says_how_to_get_it(tmp_path: Path) -> None:
    done = run(tmp_path, tmp_path)
    assert [one.code for one in done.errors] == ["module_missing"]


def test_on_term_the_program_goes_too(tmp_path: Path, home: Path) -> None:
    job = make_job(tmp_path / "job", {"video": "v.mp4", "audio": "a.m4a"}, **make_media(tmp_path))
    with run_program(MAIN, job, LAMPLIGHTER_MUSETALK_HOME=str(home), STAND_IN="hang") as process:
        assert process.stderr is not None
        while b"Starting inference" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)  # both pipes end, so nothing that has them open is left
    assert process.returncode == 128 + signal.SIGTERM
    assert list((job / "out").iterdir()) == []


def test_clients_of_heygem_can_use_it() -> None:
    endpoint = parse_endpoint((IMAGES / "musetalk" / "endpoint.toml").read_text())
    body = {"audio_url": "a.wav", "video_url": "v.mp4", "code": "c1", "chaofen": 1, "watermark_switch": 1, "pn": 1}
    made = build_submission(endpoint, parse_submit(body), "sha256:a", "sha256:v")
    assert made["input"] == {"video": "sha256:v", "audio": "sha256:a"}
    assert set(made["input"]) <= set(endpoint.input["properties"])
    assert set(endpoint.input["required"]) == set(made["input"])
