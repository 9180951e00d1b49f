"""The image's program on real clips, as a process: what comes out, what is refused, what it costs."""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from lipsync.encode import COMMENT
from lipsync.engine import PreviewEngine
from lipsync.work import PreviewOptions
from schemas.container_protocol import ErrorLine, ExitCode, MetricLine, ProgressLine
from schemas.endpoint import parse_endpoint
from tests.images.job_process import IMAGES, make_job, parse_messages, run_program
from tests.images.preview.lip_sync import best_correlation, measure_lip_opening, measure_loudness
from tests.images.preview.sample_videos import write_resized_video, write_wav

MAIN = IMAGES / "preview" / "main.py"
Run = Callable[..., SimpleNamespace]


def errors(done: SimpleNamespace) -> list[str]:
    return [line.code for line in done.said if isinstance(line, ErrorLine)]


def test_result_is_a_whole_mp4_as_long_as_the_speech(spoken: SimpleNamespace, samples: Path) -> None:
    with av.open(samples / "speech.wav") as speech:
        seconds = speech.duration / av.time_base
    with av.open(spoken.out / "result.mp4") as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.width, video.height, video.average_rate) == (640, 360, 30)
        assert abs(float(video.duration * video.time_base) - seconds) < 0.1
        assert abs(float(audio.duration * audio.time_base) - seconds) < 0.1
        assert abs(file.duration / av.time_base - seconds) < 0.1
        assert file.metadata["comment"] == COMMENT == "preview engine (not HeyGem)"
        assert sum(1 for _ in file.decode(video)) == spoken.data["frames"] == round(seconds * 30)
    assert sorted(path.name for path in spoken.out.iterdir()) == ["output.json", "result.mp4"]


def test_sound_and_picture_lie_side_by_side_in_the_file(spoken: SimpleNamespace) -> None:
    """A player on a slow line needs both from the start."""
    with av.open(spoken.out / "result.mp4") as file:
        spots = [(packet.pos, packet.stream.type) for packet in file.demux() if packet.pos is not None]
    kinds = [kind for _, kind in sorted(spots)]
    changes = sum(a != b for a, b in itertools.pairwise(kinds))
    assert changes > 10


def test_progress_rises_to_one(spoken: SimpleNamespace) -> None:
    progress = [line for line in spoken.said if isinstance(line, ProgressLine)]
    fractions = [line.fraction for line in progress]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert {line.stage for line in progress} == {"track", "render"}
    assert {line.name for line in spoken.said if isinstance(line, MetricLine)} == {"track_fps", "render_fps"}


def test_lips_follow_this_speech_and_no_other(spoken: SimpleNamespace, samples: Path, engine: PreviewEngine) -> None:
    opening = measure_lip_opening(spoken.out / "result.mp4", engine)
    own, lag = best_correlation(opening, measure_loudness(samples / "speech.wav"))
    other, _ = best_correlation(opening, measure_loudness(samples / "speech2.wav"))
    assert own >= 0.5
    assert abs(lag) <= 1
    assert own > other


def test_silence_keeps_the_mouth_shut(run: Run, samples: Path, tmp_path: Path, engine: PreviewEngine) -> None:
    done = run(samples / "face.mp4", write_wav(tmp_path / "silence.wav", 2.0))
    assert done.code == 0, done.log
    assert np.quantile(measure_lip_opening(done.out / "result.mp4", engine), 0.9) < 0.08


def test_no_face_is_the_clients_fault(run: Run, samples: Path) -> None:
    done = run(samples / "no_face.mp4", samples / "speech2.wav")
    assert (done.code, errors(done)) == (ExitCode.BAD_INPUT, ["no_face"])
    assert list(done.out.iterdir()) == []


def test_without_its_packages_it_says_how_to_install_them(samples: Path, tmp_path: Path) -> None:
    """As after `./justw up` alone; an empty `torch` stands for none."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(name='torch')")
    files = {"v.mp4": (samples / "face.mp4").read_bytes(), "a.wav": (samples / "speech2.wav").read_bytes()}
    job = make_job(tmp_path / "job", {"video": "v.mp4", "audio": "a.wav"}, **files)
    with run_program(MAIN, job, PYTHONPATH=f"{tmp_path}:{IMAGES / 'jobkit'}") as process:
        out, _ = process.communicate(timeout=60)
    failed = [message for message in parse_messages(out) if isinstance(message, ErrorLine)]
    assert [(one.code, one.message.split(":")[0]) for one in failed] == [
        ("module_missing", "torch is not installed for preview")
    ]


def test_a_truncated_video_is_unreadable(run: Run, samples: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mp4"
    cut.write_bytes((samples / "face.mp4").read_bytes()[:50_000])
    done = run(cut, samples / "speech2.wav")
    assert (done.code, errors(done)) == (ExitCode.BAD_INPUT, ["unreadable_video"])


def test_a_video_without_sound_is_no_speech(run: Run, samples: Path, tmp_path: Path) -> None:
    mute = write_resized_video(samples / "face.mp4", tmp_path / "mute.mp4", 320, 180)
    done = run(samples / "face.mp4", mute)
    assert (done.code, errors(done)) == (ExitCode.BAD_INPUT, ["unreadable_audio"])


def test_a_video_gives_its_sound_as_speech(run: Run, samples: Path) -> None:
    done = run(samples / "face.mp4", samples / "face.mp4", max_side=320, fps=10)
    assert done.code == 0, done.log


def test_the_videos_own_rate_is_kept(run: Run, samples: Path, tmp_path: Path) -> None:
    rate = Fraction(30000, 1001)
    with av.open(samples / "face.mp4") as given, av.open(tmp_path / "ntsc.mp4", "w") as file:
        stream = file.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for index, frame in enumerate(given.decode(video=0)):
            shown = frame.reformat(320, 180, "yuv420p")
            shown.pts, shown.time_base = index, 1 / rate
            file.mux(stream.encode(shown))
        file.mux(stream.encode(None))
    done = run(tmp_path / "ntsc.mp4", samples / "speech2.wav")
    assert (done.code, done.data["fps"]) == (0, 29.97), done.log
    with av.open(done.out / "result.mp4") as file:
        assert file.streams.video[0].average_rate == rate
        assert abs(file.duration / av.time_base - done.data["seconds"]) < 0.1


def test_options_are_kept(run: Run, samples: Path) -> None:
    done = run(
        samples / "face.mp4", samples / "speech2.wav", fps=15, max_side=320, crf=30, gain=0.5, preset="ultrafast"
    )
    assert done.code == 0, done.log
    assert (done.data["width"], done.data["height"], done.data["fps"]) == (320, 180, 15)


def test_sigterm_ends_it_and_leaves_no_result(samples: Path, tmp_path: Path) -> None:
    files = {"v.mp4": (samples / "face.mp4").read_bytes(), "a.wav": (samples / "speech.wav").read_bytes()}
    folder = make_job(tmp_path, {"video": "v.mp4", "audio": "a.wav"}, **files)
    with run_program(MAIN, folder) as process:
        assert process.stdout is not None
        while b"render" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert not [line for line in parse_messages(rest) if isinstance(line, ErrorLine)]
    assert list((folder / "out").iterdir()) == []


def cost(folder: Path) -> tuple[float, float]:
    """CPU seconds and peak MiB of one job, by a process that has had no other child."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "u = resource.getrusage(resource.RUSAGE_CHILDREN); print(u.ru_utime + u.ru_stime, u.ru_maxrss / 1024)"
    )
    env = os.environ | {"LAMPLIGHTER_JOB": str(folder), "PYTHONPATH": str(IMAGES / "jobkit")}
    argv = [sys.executable, "-c", code, sys.executable, str(MAIN)]
    said = subprocess.run(argv, env=env, check=True, capture_output=True, text=True, timeout=280).stdout
    seconds, peak = said.split()
    return float(seconds), float(peak)


@pytest.mark.long(8)
@pytest.mark.parametrize(("size", "least_fps"), [((640, 360), 20), ((1920, 1080), 10)])
def test_cost_of_a_picture_is_bounded(samples: Path, tmp_path: Path, size: tuple[int, int], least_fps: int) -> None:
    """In two cores' processor time: a shared machine's clock tells nothing. At 1080p the face is 700 pixels high."""
    video = write_resized_video(samples / "face.mp4", tmp_path / "v.mp4", *size).read_bytes()
    files = {"v.mp4": video, "a.wav": (samples / "speech.wav").read_bytes()}
    spent, peak = cost(make_job(tmp_path, {"video": "v.mp4", "audio": "a.wav", "fps": 25}, **files))
    assert 178 / spent * 2 >= least_fps
    assert peak < 1500


@pytest.mark.long(13)
def test_memory_does_not_grow_with_the_length(samples: Path, tmp_path: Path) -> None:
    video = write_resized_video(samples / "face.mp4", tmp_path / "v.mp4", 320, 180).read_bytes()
    peaks = []
    for seconds in (20, 80):
        audio = write_wav(tmp_path / f"{seconds}.wav", seconds).read_bytes()
        files = {"v.mp4": video, "a.wav": audio}
        _, peak = cost(make_job(tmp_path / str(seconds), {"video": "v.mp4", "audio": "a.wav", "fps": 10}, **files))
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 120


def test_endpoint_says_what_the_code_takes() -> None:
    endpoint = parse_endpoint((IMAGES / "preview" / "endpoint.toml").read_text())
    fields = endpoint.input["properties"]
    assets = sorted(name for name, field in fields.items() if field.get("format") == "asset")
    assert sorted(endpoint.input["required"]) == assets == ["audio", "video"]
    defaults = {name: field["default"] for name, field in fields.items() if "default" in field}
    assert {*fields} - {*defaults} == {"audio", "video", "fps"}  # without fps, the video's own rate is kept
    assert PreviewOptions.of({}) == PreviewOptions.of(defaults) == PreviewOptions(None, 1.0, 1920, 20, "superfast")
    assert endpoint.warm
    assert endpoint.resources.gpu_optional
