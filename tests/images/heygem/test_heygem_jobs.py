"""Jobs that go well, in each of the vendor's generations and by its server, and what the worker shows meanwhile."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from schemas.container import Message, Progress, Ready
from tests.images.heygem.media import film
from tests.images.heygem.runs import Ended, Samples, environment, finish, job_folder, run, worker
from tests.images.job_process import make_job, messages

GENERATIONS = ("gen1", "gen2")


def results(ended: Ended) -> list[str]:
    return sorted(path.name for path in (ended.folder / "out").iterdir())


@pytest.mark.parametrize(("vendor", "engine"), [("gen1", "gen1"), ("gen2", "gen2"), ("unknown", "http")])
def test_makes_a_video(tmp_path: Path, samples: Samples, vendor: str, engine: str) -> None:
    ended = run(tmp_path, samples, vendor)
    assert ended.code == 0, ended.log
    assert (tmp_path / "out" / "result.mp4").read_bytes() == samples.made.read_bytes()
    assert results(ended) == ["output.json", "result.mp4"]
    assert ended.data.pop("cost_s") > 0
    assert {**ended.data, "cost_s": 0} == {
        "engine": engine, "width": 64, "height": 64, "fps": 25.0, "seconds": 2.0, "cost_s": 0
    }  # fmt: skip
    fractions = [said.fraction for said in ended.progress]
    assert fractions == sorted(fractions)
    assert ended.progress[-1].stage == "check"


def lines_until(process: "subprocess.Popen[bytes]", wanted: Progress) -> bytes:
    """Its stdout up to the line that says `wanted`."""
    assert process.stdout is not None
    read = b""
    while wanted not in messages(read):
        line = process.stdout.readline()
        assert line, messages(read)
        read += line
    return read


@pytest.mark.parametrize("vendor", GENERATIONS)
def test_progress_is_the_frames_written(tmp_path: Path, samples: Samples, vendor: str) -> None:
    """Held by a gate after 25 of 50 frames: the vendor says 20 % (or 5) all along, the worker how far it is."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    folder = job_folder(tmp_path / "job", samples)
    env = environment(folder, vendor, "ok", samples.made, HEYGEM_FAKE_GATE=str(gate))
    with worker(env) as process:
        said = lines_until(process, Progress(0.5, "render", 25, 50))
        gate.write_bytes(b"go on")
        assert finish(process, folder, said).code == 0


def test_switches_reach_the_vendor(tmp_path: Path, samples: Samples) -> None:
    """In the order of its logs: watermark, digital_auth, chaofen, pn. The default of pn is 1, as app_local.py's."""
    folder = job_folder(tmp_path, samples, pn=0, watermark=1, digital_auth=0, chaofen=1)
    with worker(environment(folder, "gen2", "ok", samples.made)) as process:
        assert "switches 1010" in finish(process, folder).log
    assert "switches 0001" in run(tmp_path / "silent", samples, "gen2").log


def test_a_result_of_another_length_is_refused(tmp_path: Path, samples: Samples) -> None:
    """Speech of 2 s at 25 frames a second: 0.58 s off passes, more does not."""
    short = film(tmp_path / "short.mp4", 1.36, sound=True)
    ended = run(tmp_path / "job", samples, "gen2", HEYGEM_FAKE_RESULT=str(short))
    assert ended.error == (70, "output_invalid")
    assert "lasts 1.36 s and the speech 2.00 s" in ended.message
    assert results(ended) == []


@pytest.mark.parametrize("field", ["video", "audio"])
def test_a_file_that_is_no_media_is_the_clients_fault(tmp_path: Path, samples: Samples, field: str) -> None:
    files = {"video": samples.video.read_bytes(), "audio": samples.audio.read_bytes(), field: b"no media at all"}
    folder = make_job(tmp_path, {"video": "video", "audio": "audio"}, **files)
    with worker(environment(folder, "gen2", "ok", samples.made)) as process:
        assert finish(process, folder).error == (65, f"unreadable_{field}")


def test_speech_that_is_too_long_is_refused_before_the_vendor_sees_it(tmp_path: Path, samples: Samples) -> None:
    ended = run(tmp_path, samples, "gen2", HEYGEM_MAX_AUDIO_S="1.5")
    assert ended.error == (65, "input_too_large")
    assert "switches" not in ended.log


def ready(process: "subprocess.Popen[bytes]") -> list[Message]:
    assert process.stdout is not None
    return messages(process.stdout.readline())


@pytest.mark.parametrize("vendor", GENERATIONS)
def test_a_warm_worker_has_loaded_before_its_job_comes(tmp_path: Path, samples: Samples, vendor: str) -> None:
    for part in ("in", "out", "tmp"):
        (tmp_path / part).mkdir()
    with worker(environment(tmp_path, vendor, "ok", samples.made, LAMPLIGHTER_WARM="1")) as process:
        assert ready(process) == [Ready()]
        job_folder(tmp_path, samples)
        with socket.socket(socket.AF_UNIX) as runner:
            runner.connect(str(tmp_path / "start.sock"))
            runner.sendall(b"start\n")
        ended = finish(process, tmp_path)
    assert ended.code == 0, ended.log
    assert ended.log.index("load" if vendor == "gen2" else "进程启动") < ended.log.index("switches")


def test_two_jobs_have_a_worker_each(tmp_path: Path, samples: Samples) -> None:
    """A process's second job hangs (test_heygem_failures), so that no process ever gets one."""
    assert [run(tmp_path / name, samples, "gen1").code for name in ("first", "second")] == [0, 0]


def test_sigterm_ends_it_and_all_that_the_vendor_started(tmp_path: Path, samples: Samples) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    folder = job_folder(tmp_path / "job", samples)
    with worker(environment(folder, "gen1", "ok", samples.made, HEYGEM_FAKE_GATE=str(gate))) as process:
        said = lines_until(process, Progress(0.5, "render", 25, 50))
        process.terminate()
        # Its children hold stderr: that it ends means that they have.
        assert finish(process, folder, said).code == 143
    assert not [path for path in Path("/proc").glob("[0-9]*/environ") if str(gate).encode() in read(path)]


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended
        return b""


def test_works_with_pyav_where_ffmpeg_is_missing(tmp_path: Path, samples: Samples) -> None:
    """A PATH without any program: whatever this machine has."""
    assert run(tmp_path, samples, "gen1", PATH=str(tmp_path)).code == 0


def test_nothing_is_written_outside_the_jobs_folder(tmp_path: Path, samples: Samples) -> None:
    """The vendor's files are only read: its config.ini asks for other folders and a report to somebody."""
    home = Path(environment(tmp_path, "gen1", "ok", samples.made)["HEYGEM_HOME"])
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*") if "__pycache__" not in path.parts}
    assert run(tmp_path, samples, "gen1").code == 0
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*") if "__pycache__" not in path.parts} == before
    written = (tmp_path / "tmp" / "heygem" / "config" / "config.ini").read_text()
    for line in ("enable = 0", f"temp_dir = {tmp_path}/tmp/heygem/data/temp", "watermark_path = ./watermark.png"):
        assert line in written
