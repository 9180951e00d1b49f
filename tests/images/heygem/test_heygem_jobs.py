"""Jobs that go well, in each of the vendor's generations and by its server, and what the worker shows meanwhile."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from schemas.container_protocol import ContainerLine, ProgressLine, ReadyLine
from tests.images.heygem.media import write_video
from tests.images.heygem.worker_runs import (
    STAND_IN_VENDORS,
    WorkerRun,
    WorkerSamples,
    copy_vendor,
    job_folder,
    run_worker_job,
    start_worker,
    wait_for_end,
    worker_environ,
)
from tests.images.job_process import make_job, parse_messages

GENERATIONS = ("gen1", "gen2")


def results(ended: WorkerRun) -> list[str]:
    return sorted(path.name for path in (ended.folder / "out").iterdir())


@pytest.mark.parametrize(("vendor", "engine"), [("gen1", "gen1"), ("gen2", "gen2"), ("unknown", "http")])
def test_makes_a_video(tmp_path: Path, samples: WorkerSamples, vendor: str, engine: str) -> None:
    ended = run_worker_job(tmp_path, samples, vendor)
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


def lines_until(process: "subprocess.Popen[bytes]", wanted: ProgressLine) -> bytes:
    """Its stdout up to the line that says `wanted`."""
    assert process.stdout is not None
    read = b""
    while wanted not in parse_messages(read):
        line = process.stdout.readline()
        assert line, parse_messages(read)
        read += line
    return read


@pytest.mark.parametrize("vendor", GENERATIONS)
def test_progress_is_the_frames_written(tmp_path: Path, samples: WorkerSamples, vendor: str) -> None:
    """Held by a gate after 25 of 50 frames: the vendor says 20 % (or 5) all along, the worker how far it is."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    folder = job_folder(tmp_path / "job", samples)
    env = worker_environ(folder, samples, vendor, HEYGEM_FAKE_GATE=str(gate))
    with start_worker(env) as process:
        said = lines_until(process, ProgressLine(0.5, "render", 25, 50))
        gate.write_bytes(b"go on")
        assert wait_for_end(process, folder, said).code == 0


def test_switches_reach_the_vendor(tmp_path: Path, samples: WorkerSamples) -> None:
    """In the order of its logs: watermark, digital_auth, chaofen, pn. The default of pn is 1, as app_local.py's."""
    home = copy_vendor("gen2", tmp_path / "code")
    (home / "mark.png").touch()
    with (home / "config" / "config.ini").open("a") as file:
        file.write("[watermark]\nwatermark_path = ./mark.png\n")
    folder = job_folder(tmp_path, samples, pn=0, watermark=1, digital_auth=0, chaofen=1)
    with start_worker(worker_environ(folder, samples, "gen2", HEYGEM_HOME=str(home))) as process:
        assert "switches 1010" in wait_for_end(process, folder).log
    assert "switches 0001" in run_worker_job(tmp_path / "silent", samples, "gen2").log


def test_a_result_of_another_length_is_refused(tmp_path: Path, samples: WorkerSamples) -> None:
    """Speech of 2 s at 25 frames a second: 0.58 s off passes, more does not."""
    short = write_video(tmp_path / "short.mp4", 1.36, sound=True)
    ended = run_worker_job(tmp_path / "job", samples, "gen2", HEYGEM_FAKE_RESULT=str(short))
    assert ended.error == (70, "output_invalid")
    assert "lasts 1.36 s and the speech 2.00 s" in ended.message
    assert results(ended) == []


@pytest.mark.parametrize("field", ["video", "audio"])
def test_a_file_that_is_no_media_is_the_clients_fault(tmp_path: Path, samples: WorkerSamples, field: str) -> None:
    files = {"video": samples.video.read_bytes(), "audio": samples.audio.read_bytes(), field: b"no media at all"}
    folder = make_job(tmp_path, {"video": "video", "audio": "audio"}, **files)
    with start_worker(worker_environ(folder, samples, "gen2")) as process:
        assert wait_for_end(process, folder).error == (65, f"unreadable_{field}")


def test_speech_that_is_too_long_is_refused_before_the_vendor_sees_it(tmp_path: Path, samples: WorkerSamples) -> None:
    ended = run_worker_job(tmp_path, samples, "gen2", HEYGEM_MAX_AUDIO_S="1.5")
    assert ended.error == (65, "input_too_large")
    assert "switches" not in ended.log


def ready(process: "subprocess.Popen[bytes]") -> list[ContainerLine]:
    assert process.stdout is not None
    return parse_messages(process.stdout.readline())


@pytest.mark.parametrize("vendor", GENERATIONS)
def test_a_warm_worker_has_loaded_before_its_job_comes(tmp_path: Path, samples: WorkerSamples, vendor: str) -> None:
    for part in ("in", "out", "tmp"):
        (tmp_path / part).mkdir()
    with start_worker(worker_environ(tmp_path, samples, vendor, LAMPLIGHTER_WARM="1")) as process:
        assert ready(process) == [ReadyLine()]
        job_folder(tmp_path, samples)
        with socket.socket(socket.AF_UNIX) as runner:
            runner.connect(str(tmp_path / "start.sock"))
            runner.sendall(b"start\n")
        ended = wait_for_end(process, tmp_path)
    assert ended.code == 0, ended.log
    assert ended.log.index("load" if vendor == "gen2" else "进程启动") < ended.log.index("switches")


def test_two_jobs_have_a_worker_each(tmp_path: Path, samples: WorkerSamples) -> None:
    """A process's second job hangs (test_heygem_failures), so that no process ever gets one."""
    assert [run_worker_job(tmp_path / name, samples, "gen1").code for name in ("first", "second")] == [0, 0]


def test_sigterm_ends_it_and_all_that_the_vendor_started(tmp_path: Path, samples: WorkerSamples) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    folder = job_folder(tmp_path / "job", samples)
    with start_worker(worker_environ(folder, samples, "gen1", HEYGEM_FAKE_GATE=str(gate))) as process:
        said = lines_until(process, ProgressLine(0.5, "render", 25, 50))
        process.terminate()
        # Its children hold stderr: that it ends means that they have.
        assert wait_for_end(process, folder, said).code == 143
    assert not [path for path in Path("/proc").glob("[0-9]*/environ") if str(gate).encode() in read(path)]


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended
        return b""


def test_works_with_pyav_where_ffmpeg_is_missing(tmp_path: Path, samples: WorkerSamples) -> None:
    """A PATH without any program: whatever this machine has."""
    assert run_worker_job(tmp_path, samples, "gen1", PATH=str(tmp_path)).code == 0


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Every file there with its time and what is in it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize("vendor", STAND_IN_VENDORS)
def test_nothing_is_written_outside_the_jobs_folder(tmp_path: Path, samples: WorkerSamples, vendor: str) -> None:
    """The vendor's files are only read, though its config.ini names other folders and its model writes its options.

    Nor by app_local.py, which changes to the vendor's folder, and whose children do so again.
    """
    home = copy_vendor(vendor, tmp_path / "code")
    before = contents(home)
    folder = tmp_path / "job"
    env = {"HEYGEM_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(folder / "tmp")}
    ended = run_worker_job(folder, samples, vendor, **env)
    assert ended.code == 0, ended.log
    assert contents(home) == before
    private = folder / "tmp" / "heygem"
    written = (private / "config" / "config.ini").read_text()
    for line in ("enable = 0", f"temp_dir = {private}/data/temp", "report_interval = 10"):
        assert line in written
    assert "Options" in (private / "landmark2face_wy" / "checkpoints" / "test" / "opt.txt").read_text()


def test_a_line_of_the_vendors_logger_is_in_the_log_once(tmp_path: Path, samples: WorkerSamples) -> None:
    """It writes each to stderr and to a file, with different time stamps."""
    ended = run_worker_job(tmp_path, samples, "gen1")
    assert ended.log.count("数字人图片处理进程启动") == 1
    assert ended.log.count("-> need chaofen .") == 10, "one for each batch"


@pytest.mark.parametrize(("sharpen", "sharpened"), [("auto", True), ("never", False)])
def test_sharpening_can_be_switched_off(tmp_path: Path, samples: WorkerSamples, sharpen: str, sharpened: bool) -> None:
    """The vendor does it by itself, whatever chaofen says, where the face is blurred."""
    ended = run_worker_job(tmp_path, samples, "gen1", HEYGEM_SHARPEN=sharpen)
    assert ended.code == 0, ended.log
    assert ("need chaofen" in ended.log) is sharpened


def test_face_detection_may_take_longer_than_the_vendor_waits(tmp_path: Path, samples: WorkerSamples) -> None:
    """The vendor's parent gives it 10 s and then fails with an empty text; here it takes half a second more."""
    ended = run_worker_job(tmp_path, samples, "gen1", "late_faces")
    assert ended.code == 0, ended.log


def test_a_setting_that_cannot_be_used_is_said(tmp_path: Path, samples: WorkerSamples) -> None:
    for name, value in (("HEYGEM_SHARPEN", "no"), ("HEYGEM_PYTHON", "/nowhere/python"), ("HEYGEM_LOAD_S", "soon")):
        ended = run_worker_job(tmp_path / name, samples, "gen1", **{name: value})
        assert ended.error == (70, "model_load_failed")
        assert f"{name}={value!r} is" in ended.message


def test_a_mark_without_a_picture_ends_the_job_before_the_work(tmp_path: Path, samples: WorkerSamples) -> None:
    """Neither of the published config.ini names one."""
    folder = job_folder(tmp_path, samples, watermark=1)
    with start_worker(worker_environ(folder, samples, "gen1")) as process:
        ended = wait_for_end(process, folder)
    assert ended.error == (65, "bad_input")
    assert "watermark is not available" in ended.message
    assert "switches 1001" not in ended.log
