"""One suite on both ways to read and rewrite media: ffmpeg's programs, and PyAV."""

import shutil
import wave
from fractions import Fraction
from pathlib import Path

import pytest

from heygem_worker.ffmpeg import FfmpegTools
from heygem_worker.inputs import JobFiles, prepare
from heygem_worker.media_info import MediaInfo, MediaProgress, MediaUnreadable, can_copy_video, round_fps
from heygem_worker.media_tools import MediaTools
from heygem_worker.pyav import PyavTools
from heygem_worker.result import check, find, hand_over
from jobkit import BadInput, JobError, TryAgain
from jobkit.job import Job
from jobkit.messages import MessageWriter
from tests.images.heygem.media import write_speech, write_video
from tests.images.job_process import make_job


@pytest.fixture(params=[FfmpegTools, PyavTools])
def tools(request: pytest.FixtureRequest) -> MediaTools:
    if request.param is FfmpegTools and not (shutil.which("ffmpeg") and shutil.which("ffprobe")):
        pytest.skip("ffmpeg and ffprobe are not installed: on Debian, apt-get install ffmpeg")
    made: MediaTools = request.param()
    return made


def nothing(_: float) -> None:
    pass


def test_probe_tells_what_is_there(tools: MediaTools, tmp_path: Path) -> None:
    both = tools.probe(write_video(tmp_path / "a.mp4", sound=True))
    assert both.picture is not None
    assert (both.picture.fps, both.picture.width, both.picture.height) == (25, 64, 64)
    assert both.picture.plain
    assert both.picture.seconds == pytest.approx(2.0, abs=0.01)
    assert both.sound_s == pytest.approx(2.0, abs=0.1)
    assert tools.probe(write_video(tmp_path / "b.mp4")).sound_s is None
    assert tools.probe(write_speech(tmp_path / "c.wav")).picture is None
    other = tools.probe(write_video(tmp_path / "d.avi", codec="mpeg4")).picture
    assert other is not None
    assert not other.plain


def test_probe_of_a_format_without_durations_of_streams(tools: MediaTools, tmp_path: Path) -> None:
    tracks = tools.probe(write_video(tmp_path / "a.mkv", sound=True))
    assert tracks.picture is not None
    assert tracks.picture.seconds == pytest.approx(2.0, abs=0.2)
    assert tracks.sound_s == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize("content", [b"", b"no media", b"\0" * 4096])
def test_what_is_no_media_is_unreadable(tools: MediaTools, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(MediaUnreadable):
        tools.probe(path)
    with pytest.raises(MediaUnreadable):
        tools.to_wav(path, tmp_path / "x.wav", 10, nothing)
    with pytest.raises(MediaUnreadable):
        tools.to_video(path, tmp_path / "x.mp4", 25, 10, nothing)


def test_sound_becomes_16_khz_mono_and_is_cut(tools: MediaTools, tmp_path: Path) -> None:
    done: list[float] = []
    tools.to_wav(write_speech(tmp_path / "a.wav", 3.0, rate=44_100), tmp_path / "b.wav", 2.0, done.append)
    with wave.open(str(tmp_path / "b.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        assert file.getnframes() / 16_000 == pytest.approx(2.0, abs=0.1)
    assert done == sorted(done)
    assert done


@pytest.mark.parametrize("fps", [None, 25, 10])
def test_picture_becomes_plain_and_is_cut(tools: MediaTools, tmp_path: Path, fps: int | None) -> None:
    source = write_video(tmp_path / "a.mp4", 3.0, sound=True, side=64)
    tools.to_video(source, tmp_path / "b.mp4", fps, 2.0, nothing)
    tracks = tools.probe(tmp_path / "b.mp4")
    assert tracks.picture is not None
    assert tracks.picture.plain
    assert tracks.sound_s is None
    assert tracks.picture.fps == (fps or 25)
    assert tracks.picture.seconds == pytest.approx(2.0, abs=0.2)


def test_a_file_without_the_track_is_unreadable(tools: MediaTools, tmp_path: Path) -> None:
    with pytest.raises(MediaUnreadable):
        tools.to_wav(write_video(tmp_path / "a.mp4"), tmp_path / "a.wav", 10, nothing)
    with pytest.raises(MediaUnreadable):
        tools.to_video(write_speech(tmp_path / "b.wav"), tmp_path / "b.mp4", 25, 10, nothing)


def test_inputs_are_cut_to_the_speech_and_named_safely(tools: MediaTools, tmp_path: Path) -> None:
    files = JobFiles(
        write_video(tmp_path / "a b'$(c).avi", 5.0, codec="mpeg4"), write_speech(tmp_path / "名字 .wav", 2.0)
    )
    (tmp_path / "safe").mkdir()
    given = prepare(files, tmp_path / "safe", tools, 100, nothing)
    assert sorted(path.name for path in (tmp_path / "safe").iterdir()) == ["audio.wav", "video.mp4"]
    assert (given.audio_s, given.fps, given.frames) == (2.0, 25, 50)
    picture = tools.probe(given.video).picture
    assert picture is not None
    assert picture.plain
    assert picture.seconds == pytest.approx(3.0, abs=0.2)


def test_inputs_say_whose_fault_it_is(tools: MediaTools, tmp_path: Path) -> None:
    silent, tone = write_video(tmp_path / "a.mp4"), write_speech(tmp_path / "b.wav")
    for files, code in (
        (JobFiles(silent, silent), "unreadable_audio"),
        (JobFiles(silent, write_speech(tmp_path / "c.wav", 0.0)), "unreadable_audio"),
        (JobFiles(tone, tone), "unreadable_video"),
    ):
        with pytest.raises(BadInput) as caught:
            prepare(files, tmp_path, tools, 100, nothing)
        assert caught.value.code == code


def test_a_job_that_the_disk_cannot_hold_does_not_start(
    tools: MediaTools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        f_bavail, f_frsize = 1, 4096

    files = JobFiles(write_video(tmp_path / "a.mp4"), write_speech(tmp_path / "b.wav"))
    monkeypatch.setattr("heygem_worker.inputs.os.statvfs", lambda _: Full)
    with pytest.raises(TryAgain) as caught:
        prepare(files, tmp_path, tools, 100, nothing)
    assert caught.value.code == "disk_full"


@pytest.mark.parametrize(
    ("seconds", "sound", "fits"), [(2.0, True, True), (1.5, True, True), (1.2, True, False), (2.0, False, False)]
)
def test_a_result_is_as_long_as_the_speech_and_has_sound(
    tools: MediaTools, tmp_path: Path, seconds: float, sound: bool, fits: bool
) -> None:
    files = JobFiles(write_video(tmp_path / "a.mp4"), write_speech(tmp_path / "b.wav", 2.0))
    given = prepare(files, tmp_path, tools, 100, nothing)
    made = write_video(tmp_path / "made.mp4", seconds, sound=sound)
    if fits:
        assert check(made, tools, given).width == 64
    else:
        with pytest.raises(JobError) as caught:
            check(made, tools, given)
        assert caught.value.code == "output_invalid"


def test_a_result_cut_off_in_the_middle_is_refused(tools: MediaTools, tmp_path: Path) -> None:
    given = prepare(
        JobFiles(write_video(tmp_path / "a.mp4"), write_speech(tmp_path / "b.wav")), tmp_path, tools, 100, nothing
    )
    made = write_video(tmp_path / "made.mp4", sound=True)
    made.write_bytes(made.read_bytes()[:1500])
    with pytest.raises(JobError, match="cannot be read"):
        check(made, tools, given)


class Failing:
    """ffmpeg on a machine in trouble."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def probe(self, path: Path) -> MediaInfo:
        raise self._error

    def to_wav(self, source: Path, target: Path, limit_s: float, tell: MediaProgress) -> None:
        raise self._error

    def to_video(self, source: Path, target: Path, fps: int | None, limit_s: float, tell: MediaProgress) -> None:
        raise self._error


def test_a_full_disk_is_not_the_clients_fault(tmp_path: Path) -> None:
    tools = Failing(MediaUnreadable("av_interleaved_write_frame(): No space left on device"))
    with pytest.raises(TryAgain) as caught:
        prepare(JobFiles(tmp_path, tmp_path), tmp_path, tools, 100, nothing)
    assert caught.value.code == "disk_full"


def test_an_ffmpeg_that_is_killed_is_not_the_clients_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\nkill -9 $$\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(JobError, match="ended by signal 9"):
        FfmpegTools().to_wav(tmp_path / "a", tmp_path / "b.wav", 1.0, nothing)


def test_a_result_is_moved_and_never_read_into_memory(tmp_path: Path) -> None:
    """On one disk it is renamed: half a terabyte would do."""
    video, out = tmp_path / "x-r.mp4", make_job(tmp_path / "job", {}) / "out"
    with video.open("wb") as file:
        file.truncate(1 << 39)
    hand_over(Job(tmp_path / "job", MessageWriter(2)), video)
    assert (out / "result.mp4").stat().st_size == 1 << 39


def test_an_empty_result_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(JobError) as caught:
        find([tmp_path / "none.mp4", tmp_path / "empty.mp4"])
    assert caught.value.code == "output_missing"


def test_plain_is_what_the_vendor_copies() -> None:
    same = (Fraction(25), Fraction(25))
    assert can_copy_video("h264", "yuv420p", same, 0)
    assert not can_copy_video("hevc", "yuv420p", same, 0)
    assert not can_copy_video("h264", "yuv420p10le", same, 0)
    assert not can_copy_video("h264", "yuv420p", (Fraction(24), Fraction(30)), 0), "a phone's changing rate"
    assert not can_copy_video("h264", "yuv420p", same, -90), "a phone held upright"
    ntsc = Fraction(30000, 1001)
    assert not can_copy_video("h264", "yuv420p", (ntsc, ntsc), 0), "the vendor counts in whole frames a second"
    assert can_copy_video("h264", "yuv420p", (Fraction(60), Fraction(60)), 0)
    assert not can_copy_video("h264", "yuv420p", (Fraction(120), Fraction(120)), 0), "above what we ask of it"


@pytest.mark.parametrize(("rate", "whole"), [("30000/1001", 30), ("25", 25), ("120", 60), ("1/10", 1)])
def test_the_rate_of_the_result_is_the_templates_rounded(rate: str, whole: int) -> None:
    assert round_fps(Fraction(rate)) == whole
