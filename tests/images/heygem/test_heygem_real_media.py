"""Whole jobs with real media, through a played vendor that makes its video from what it is given, as the real one."""

import re
import shutil
import subprocess
import wave
from pathlib import Path

import av
import numpy as np
import pytest

from tests.images.heygem.media import RATE, write_video
from tests.images.heygem.worker_runs import WorkerRun, WorkerSamples, start_worker, wait_for_end, worker_environ
from tests.images.job_process import make_job

pytestmark = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")),
    reason="the played vendor makes its video with ffmpeg, as the real one does: on Debian, apt-get install ffmpeg",
)


def made(folder: Path, samples: WorkerSamples, vendor: str, video: Path, audio: Path, **env: str) -> WorkerRun:
    """One job whose result the vendor really makes."""
    job = make_job(folder, {"video": video.name, "audio": audio.name})
    for file in (video, audio):
        shutil.copyfile(file, job / "in" / file.name)
    around = worker_environ(job, samples, vendor, **env)
    del around["HEYGEM_FAKE_RESULT"]
    with start_worker(around) as process:
        return wait_for_end(process, job)


def encoded(path: Path, *how: str) -> Path:
    """A clip by ffmpeg."""
    subprocess.run(["ffmpeg", "-nostdin", "-v", "error", "-y", *how, str(path)], check=True)
    return path


def quiet(path: Path, seconds: int) -> Path:
    """A wav without a sound, written in a moment however long it is."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(bytes(2 * RATE * seconds))
    return path


@pytest.fixture(scope="module")
def ntsc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """H.264 at 29.97 frames a second: all that is needed to be copied, but for its rate."""
    source = ("-f", "lavfi", "-i", "testsrc=size=64x64:rate=30000/1001:duration=3")
    return encoded(tmp_path_factory.mktemp("ntsc") / "ntsc.mp4", *source, "-c:v", "libx264", "-pix_fmt", "yuv420p")


def test_a_template_of_2997_frames_a_second_makes_ten_minutes_of_the_right_length(
    tmp_path: Path, samples: WorkerSamples, ntsc: Path
) -> None:
    """Copied, the vendor would have written 29.97 x 600 frames at 30 a second: 0.6 s too short, and refused."""
    ended = made(tmp_path, samples, "gen2", ntsc, quiet(tmp_path / "long.wav", 600))
    assert ended.code == 0, ended.log
    assert ended.data["fps"] == 30.0
    assert ended.data["seconds"] == pytest.approx(600, abs=0.1)


def test_half_an_hour_of_speech(tmp_path: Path, samples: WorkerSamples) -> None:
    """As much as a job may have by default; the template, ten frames a second, is looped by the vendor."""
    source = ("-f", "lavfi", "-i", "testsrc=size=32x32:rate=10:duration=3")
    video = encoded(tmp_path / "small.mp4", *source, "-c:v", "libx264", "-pix_fmt", "yuv420p")
    ended = made(tmp_path / "job", samples, "gen1", video, quiet(tmp_path / "long.wav", 1800))
    assert ended.code == 0, ended.log
    assert ended.data["seconds"] == pytest.approx(1800, abs=0.7)


def test_a_picture_of_4k(tmp_path: Path, samples: WorkerSamples) -> None:
    source = ("-f", "lavfi", "-i", "testsrc=size=3840x2160:rate=5:duration=1")
    video = encoded(tmp_path / "4k.mp4", *source, "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p")
    ended = made(tmp_path / "job", samples, "gen1", video, quiet(tmp_path / "short.wav", 1))
    assert ended.code == 0, ended.log
    assert (ended.data["width"], ended.data["height"]) == (3840, 2160)


@pytest.mark.parametrize("vendor", ["gen1", "gen2"])
def test_chinese_names(tmp_path: Path, samples: WorkerSamples, vendor: str) -> None:
    """The vendor puts paths into shell commands without quotes, so it is given names of our own."""
    video, audio = write_video(tmp_path / "主播 视频（最终版）.mp4"), quiet(tmp_path / "录音 'a' 1.wav", 2)
    ended = made(tmp_path / "job", samples, vendor, video, audio)
    assert ended.code == 0, ended.log
    assert ended.data["seconds"] == pytest.approx(2, abs=0.1)


def corner(path: Path) -> np.ndarray:
    """The lower right quarter of a frame in the middle, where a label is drawn."""
    with av.open(str(path)) as file:
        frames = [frame.to_ndarray(format="gray") for frame in file.decode(video=0)]
    picture = frames[len(frames) // 2]
    return picture[picture.shape[0] * 3 // 4 :, picture.shape[1] // 2 :]


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = ("-f", "lavfi", "-i", "color=gray:size=320x180:rate=25:duration=2")
    return encoded(tmp_path_factory.mktemp("grey") / "grey.mp4", *source, "-c:v", "libx264", "-pix_fmt", "yuv420p")


def test_a_label_of_the_operators_is_in_the_picture(tmp_path: Path, samples: WorkerSamples, grey: Path) -> None:
    """Whatever is in the text: it is no expression of ffmpeg's."""
    audio = quiet(tmp_path / "a.wav", 2)
    plain = made(tmp_path / "plain", samples, "gen1", grey, audio)
    assert plain.code == 0, plain.log
    assert corner(plain.folder / "out" / "result.mp4").std() < 2, "off by default"
    ended = made(tmp_path / "job", samples, "gen1", grey, audio, HEYGEM_LABEL="AI: 'made' by %{n} machine\\")
    assert ended.code == 0, ended.log
    assert corner(ended.folder / "out" / "result.mp4").std() > 20
    assert ended.data["seconds"] == pytest.approx(2, abs=0.1)
    assert "label" in [said.stage for said in ended.progress]


FAILING = """#!/bin/sh
case "$*" in *drawtext*) echo "No such filter: 'drawtext'" >&2; exit 1;; esac
exec {ffmpeg} "$@"
"""


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"HEYGEM_LABEL_FONT": "/nowhere/font.ttf"}, "HEYGEM_LABEL_FONT='/nowhere/font.ttf' is not a file"),
        ({"without": "the filter"}, "No such filter: 'drawtext'"),
        ({"without": "ffmpeg"}, "there is no ffmpeg in this image"),
    ],
)
def test_a_label_that_cannot_be_drawn_is_said_before_any_job(
    tmp_path: Path, samples: WorkerSamples, grey: Path, settings: dict[str, str], why: str
) -> None:
    env = {name: value for name, value in settings.items() if name.startswith("HEYGEM")}
    if settings.get("without"):
        env["PATH"] = str(tmp_path / "bin")
        (tmp_path / "bin").mkdir()
        if settings["without"] == "the filter":
            (tmp_path / "bin" / "ffmpeg").write_text(FAILING.format(ffmpeg=shutil.which("ffmpeg")))
            (tmp_path / "bin" / "ffmpeg").chmod(0o755)
    ended = made(tmp_path / "job", samples, "gen1", grey, quiet(tmp_path / "a.wav", 1), HEYGEM_LABEL="AI", **env)
    assert ended.error == (70, "model_load_failed")
    assert re.match("HEYGEM_LABEL is set and cannot be drawn: .*, or leave HEYGEM_LABEL out", ended.message)
    assert why in ended.message
