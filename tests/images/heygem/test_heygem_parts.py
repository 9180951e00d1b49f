"""The worker's parts by themselves: what takes hours or a GPU in a job takes numbers here."""

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from heygem_worker import (
    failures,
    frame_counter,
    http_vendor,
    interpreter,
    label,
    loading,
    private_folder,
    queue_timeout,
)
from heygem_worker.frame_counter import CountedQueue
from heygem_worker.loading import ReadyLines
from heygem_worker.private_folder import make_folders, read_config
from heygem_worker.progress import ProgressMeter
from heygem_worker.settings import WorkerSettings
from heygem_worker.vendor import FAILED, RUNNING, VendorStatus, parse_status
from heygem_worker.vendor_processes import list_descendants
from heygem_worker.watchdog import Watchdog, WatchdogLimits
from jobkit import BadInput, GpuUnusable, JobError, TryAgain
from schemas import endpoint
from schemas.asset import asset_fields
from tests.images.heygem.worker_runs import MAIN, copy_vendor

# Spelled out by hand: what the vendor says in the end -> our code and the exception, whose exit code it is.
SAYS = {
    "": ("internal", TryAgain),
    "存在多人脸": ("multiple_faces", BadInput),
    "[x]预处理失败，异常信息:[format video error]": ("internal", TryAgain),
    "[x]视频下载失败，异常信息:[404]": ("internal", TryAgain),
    "[x]预处理失败，异常信息:[format audio error]": ("internal", TryAgain),
    "[x]音频下载失败，异常信息:[404]": ("internal", TryAgain),
    "[x]音频特征提取失败，异常信息:[?]": ("internal", TryAgain),
    "[x]音频特征提取失败，异常信息:[CUDA out of memory. Tried to allocate]": ("cuda_oom", TryAgain),
    "三次获取音频时长失败": ("internal", TryAgain),
    "视频入参或音频入参下载处理异常": ("internal", TryAgain),
    "[x]视频帧队列处理异常结束，异常原因:[数字人处理失败，失败原因:[?]]": ("internal", TryAgain),
    "[x]任务视频驱动队列满，严重阻塞，下游队列异常": ("stalled", TryAgain),
    "no final result": ("stalled", TryAgain),
    "[x]生成视频失败": ("output_missing", JobError),
    "CUDA error: no kernel image is available for execution on the device": ("gpu_unsupported", GpuUnusable),
    "EP Error /onnxruntime/…": ("gpu_unhealthy", GpuUnusable),
    "OSError: [Errno 28] No space left on device": ("disk_full", TryAgain),
    "[Errno 12] Cannot allocate memory": ("out_of_memory", JobError),
    "忙碌中": ("internal", TryAgain),
    "CUDA error: CUDA driver version is insufficient for CUDA runtime version": ("gpu_unsupported", GpuUnusable),
    "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 500": ("gpu_unhealthy", GpuUnusable),
    "[W:onnxruntime] Failed to create CUDAExecutionProvider. Please reference": ("gpu_unhealthy", GpuUnusable),
    "file create failed:/code/data/temp/x/result.avi": ("internal", TryAgain),
    "[Errno 13] Permission denied: './landmark2face_wy/checkpoints/test/opt.txt'": ("internal", JobError),
    "[Errno 30] Read-only file system: './cache'": ("internal", JobError),
}
AT_ONCE = (
    ("queue", "视频驱动队列满"),
    ("blocked", "av_transfer maybe blocked, restart..."),
    ("gpu", "EP Error"),
    ("provider", "Failed to create CUDAExecutionProvider"),
    ("driver", "CUDA driver version is insufficient"),
    ("count", "cudaGetDeviceCount"),
)


@pytest.mark.parametrize("said", SAYS)
def test_the_vendors_words_have_a_code(said: str) -> None:
    failure = failures.classify_text(said)
    assert (failure.code, type(failure)) == SAYS[said]
    assert failure.message.startswith("HeyGem: ")


def test_every_row_of_the_table_is_spelled_out_here_or_seen_at_once() -> None:
    seen = [*SAYS, *(line for _, line in AT_ONCE)]
    assert [row.text for row in failures.FAILURE_RULES if not any(row.text in said for said in seen)] == []


@pytest.mark.parametrize("line", [line for _, line in AT_ONCE])
def test_a_line_that_means_the_end_ends_it(line: str) -> None:
    with pytest.raises(JobError):
        Watchdog(WatchdogLimits(1, 1), 0).feed(f"2025-06-01 12:00:00 [ERROR] {line}")


@pytest.mark.parametrize("line", ["result info [] ,continue", "存在多人脸", "音频特征提取完成", "Permission denied"])
def test_other_lines_do_not(line: str) -> None:
    Watchdog(WatchdogLimits(1, 1), 0).feed(line)
    assert failures.find_fatal_failure(line) is None


def test_only_what_is_said_of_the_faces_is_the_clients_fault() -> None:
    """The vendor never sees the client's files, only those that this worker has made of them."""
    assert [row.text for row in failures.FAILURE_RULES if row.raises is BadInput] == ["存在多人脸"]


def test_a_death_is_reported_with_the_last_line_that_may_explain_it() -> None:
    watchdog = Watchdog(WatchdogLimits(10, 100), 0)
    for line in ("PermissionError: [Errno 13] Permission denied: './x'", "音频特征提取完成"):
        watchdog.feed(line)
    with pytest.raises(JobError, match=r"has died while it was needed; it said: .*Permission denied: './x': it writes"):
        watchdog.check("a", "process 7 has died", 1.0)


def test_a_job_of_hours_lives_as_long_as_it_moves() -> None:
    """20 minutes of speech, 30,000 frames at the slowest rate reported: 2 h 28 min."""
    settings = WorkerSettings()
    watchdog = Watchdog(WatchdogLimits(settings.stall_s, settings.deadline_s(1200)), 0)
    for frame in range(0, 30_001, 100):
        watchdog.check(("render", frame), "", frame * 7.4 * 1200 / 30_000)


def test_no_default_kills_a_job_that_the_worker_lets_run() -> None:
    """The runner's limit is above the worker's, its stall limit too: so the worker is first, and names the cause."""
    heygem = endpoint.parse_endpoint((MAIN.parent / "endpoint.toml").read_text())
    settings = WorkerSettings()
    longest = settings.load_s + settings.deadline_s(settings.max_audio_s)
    assert settings.max_audio_s >= 1200
    assert heygem.timeouts.base_s > longest
    assert heygem.timeouts.stall_s > settings.stall_s


@pytest.mark.parametrize(
    ("sign", "dead", "now", "code"),
    [
        ("a", "", 10.1, "stalled"),
        ("b", "", 100.1, "execution_timeout"),
        ("b", "process 7 of the server has ended", 1.0, "internal"),
    ],
)
def test_the_watchdog_bites(sign: str, dead: str, now: float, code: str) -> None:
    watchdog = Watchdog(WatchdogLimits(10, 100), 0)
    watchdog.check("a", "", 0)
    with pytest.raises(JobError) as caught:
        watchdog.check(sign, dead, now)
    assert caught.value.code == code


def told(meter: ProgressMeter) -> tuple[Any, ...]:
    said: list[tuple[Any, ...]] = []
    meter.report(lambda *what: said.append(what))
    return said[0]


def test_frames_are_heard_counted_and_never_go_back(tmp_path: Path) -> None:
    counter, avi, png, result = tmp_path / "count", tmp_path / "avi", tmp_path / "png", tmp_path / "x-r.mp4"
    meter = ProgressMeter(100, counter, [avi, png], [result])
    assert told(meter) == (0.05, "analyse", 0, None)
    meter.feed("任务视频驱动队列启动 batch_size:4, len:200")
    meter.feed("audio_transfer >>>>>>>>>>> 发送完成数据大小:4, frameId:50")
    assert told(meter) == (pytest.approx(0.3), "render", 50, 200)
    counter.write_bytes(b"." * 100)
    meter.update(VendorStatus(RUNNING, 20))
    assert told(meter) == (pytest.approx(0.5), "render", 100, 200)
    meter.feed("frameId:60")
    assert told(meter)[2] == 100
    avi.mkdir()
    png.mkdir()
    unmoved = meter.activity
    for number in range(200):
        (png / f"{number}.png").touch()
    meter.update(VendorStatus(RUNNING, 20))
    assert told(meter)[2] == 100, "the template's frames are none of the result's"
    assert meter.activity != unmoved, "but they show that it is alive"
    for number in range(150):
        (avi / f"{number}.avi").touch()
    meter.update(VendorStatus(RUNNING, 20))
    assert told(meter) == (pytest.approx(0.7), "render", 150, 200)
    before = meter.activity
    result.write_bytes(b"x" * 4096)
    meter.update(VendorStatus(RUNNING, 90))
    assert told(meter) == (0.9, "join", 4, None)
    assert meter.activity != before


def test_the_writers_queue_is_counted_by_frames(tmp_path: Path) -> None:
    items = [(0, "", [b"a", b"b"]), (0, "", [b"c"]), (True, "", None)]

    class Played:
        def get(self) -> tuple[Any, ...]:
            return items.pop(0)

        def empty(self) -> bool:
            return not items

    counted = CountedQueue(Played(), str(tmp_path / "count"))
    while not counted.empty():
        counted.get()
    assert (tmp_path / "count").stat().st_size == 3


@pytest.mark.parametrize("child", ["spawned", "forked"])
def test_the_vendors_writer_is_called_once_in_either_kind_of_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child: str
) -> None:
    """A spawned child has a fresh module; in a forked one our function is in the place of the vendor's."""
    calls: list[Any] = []
    module = types.ModuleType(frame_counter.MODULE)
    vars(module)["write_video"] = lambda frames, code: calls.append((type(frames), code))
    if child == "forked":
        frame_counter.count_frames_of(module)
        frame_counter.count_frames_of(module)
        assert vars(module)["write_video"] is frame_counter.write_video
    monkeypatch.setitem(sys.modules, frame_counter.MODULE, module)
    monkeypatch.setenv(frame_counter.COUNTER, str(tmp_path / "count"))
    frame_counter.write_video("queue", "x")
    assert calls == [(CountedQueue, "x")]


def test_the_vendors_wait_for_faces_is_stretched_and_no_other() -> None:
    asked: list[float | None] = []

    class Queue:
        def get(self, block: bool = True, timeout: float | None = None) -> None:
            asked.append(timeout if block else -1)

    queue_timeout.lengthen_queue_timeout(Queue)
    queue_timeout.lengthen_queue_timeout(Queue)
    for timeout in (10, 10.0, 1, 60, None):
        Queue().get(timeout=timeout)
    Queue().get(True, 10)
    Queue().get(False)
    assert asked == [120.0, 120.0, 1, 60, None, 120.0, -1]
    assert WorkerSettings().stall_s > queue_timeout.LONG_TIMEOUT_S


@pytest.mark.parametrize(
    ("entry", "look"),
    [
        (None, VendorStatus()),
        ("", VendorStatus()),
        ((1, 20, "", "音频特征提取完成"), VendorStatus(RUNNING, 20, "", "音频特征提取完成")),
        ((3, None, None, None), VendorStatus(FAILED)),
        ((2, 100, "/x-r.mp4", "任务完成", 1.5, 2000, 64, 64), VendorStatus(2, 100, "/x-r.mp4", "任务完成")),
    ],
)
def test_records_of_both_generations_are_read(entry: Any, look: VendorStatus) -> None:
    assert parse_status(entry) == look


def test_ready_when_all_was_said_in_any_order() -> None:
    ready = ReadyLines(("one loaded", "two loaded"))
    ready.feed(["x two loaded, cost:1s"])
    assert ready.missing == ["one loaded"]
    ready.feed(["noise", "one loaded"])
    assert ready.missing == []


def test_settings_come_from_the_environment() -> None:
    assert WorkerSettings.read(
        {"HEYGEM_HOME": "/srv", "HEYGEM_BATCH_SIZE": "2", "HEYGEM_STALL_S": "9"}
    ) == WorkerSettings(home=Path("/srv"), batch_size=2, stall_s=9.0)
    with pytest.raises(ValueError, match="HEYGEM_LOAD_S='soon' is no number"):
        WorkerSettings.read({"HEYGEM_LOAD_S": "soon"})
    with pytest.raises(ValueError, match="HEYGEM_SHARPEN='no' is not one of auto, never"):
        WorkerSettings.read({"HEYGEM_SHARPEN": "no"})


def test_the_private_folder_has_the_code_by_links_and_all_else_by_itself(tmp_path: Path) -> None:
    home = copy_vendor("gen1", tmp_path / "code")
    place = make_folders(WorkerSettings(home=home), tmp_path / "heygem", 9999)
    assert (place.root / "service").readlink() == home / "service"
    checkpoints = Path("landmark2face_wy/checkpoints")
    assert (place.root / checkpoints / "anylang").readlink() == home / checkpoints / "anylang"
    assert (place.root / checkpoints / "test").is_dir()
    assert not any((place.root / checkpoints / "test").iterdir()), "what the vendor left there is not ours"
    written = place.config.read_text()
    assert "server_port = 9999" in written
    assert "url = http://192.0.2.1/" in written, "a key of the vendor's that we do not set is kept"
    assert "clean_switch = 1" not in written
    assert "[model]" not in written


def test_never_sharpening_is_both_of_its_keys(tmp_path: Path) -> None:
    home = copy_vendor("gen1", tmp_path / "code")
    place = make_folders(WorkerSettings(home=home, sharpen="never"), tmp_path / "heygem", 1)
    assert dict(read_config(place)["model"]) == {"chaofen_before": "0", "blur_threshold": "2.0"}


def test_the_image_links_what_the_worker_lays_out() -> None:
    dockerfile = (MAIN.parent / "Dockerfile").read_text()
    names = dockerfile.split("for name in ")[1].split(";")[0].split()
    assert names == list(private_folder.PRIVATE_PATHS)
    assert f'"/job/tmp/{loading.FOLDER}/$name"' in dockerfile


SAMPLE_CONFIG = """
[watermark]
watermark_path = ./marks/there.png
[digital_human_authentication]
digital_auth_path = {path}
"""


@pytest.mark.parametrize("path", ["", "None", "./marks/gone.png"])
def test_a_mark_without_its_picture_is_refused(tmp_path: Path, path: str) -> None:
    home = copy_vendor("gen1", tmp_path / "code")
    (home / "marks").mkdir()
    (home / "marks" / "there.png").touch()
    with (home / "config" / "config.ini").open("a") as file:
        file.write(SAMPLE_CONFIG.format(path=path))
    place = make_folders(WorkerSettings(home=home), tmp_path / "heygem", 1)
    label.check_vendor_marks({"watermark": 1, "digital_auth": 0}, place)
    with pytest.raises(BadInput, match=r"digital_auth is not available: .* in HeyGem's config.ini names"):
        label.check_vendor_marks({"watermark": 0, "digital_auth": 1}, place)


def test_the_image_keeps_the_vendors_config_under_another_name(tmp_path: Path) -> None:
    """In the image /code/config leads into the job's folder; what was there is /code/config.vendor (Dockerfile)."""
    home, root = tmp_path / "code", tmp_path / "job"
    (home / "config.vendor").mkdir(parents=True)
    (home / "config.vendor" / "config.ini").write_text("[digital]\nbatch_size = 1\nblend_dynamic = xseg\n")
    (home / "config").symlink_to(root / "config")
    place = make_folders(WorkerSettings(home=home, batch_size=8), root, 1)
    assert "batch_size = 8\nblend_dynamic = xseg" in (home / "config" / "config.ini").read_text()
    assert [path.name for path in root.iterdir() if path.is_symlink()] == []
    assert place.result_paths("x")[0] == root / "data" / "result" / "x-r.mp4"


def interpreter_at(path: Path, version: str, torch: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {version} {torch}\n")
    path.chmod(0o755)
    return path


def test_the_modules_name_their_python(tmp_path: Path) -> None:
    service = tmp_path / "code" / "service"
    service.mkdir(parents=True)
    assert interpreter.read_compiled_version(tmp_path / "code") is None
    (service / "trans_dh_service.cpython-38-x86_64-linux-gnu.so").touch()
    assert interpreter.read_compiled_version(tmp_path / "code") == "3.8"


def test_goes_on_under_the_python_that_the_modules_want_and_that_has_torch(tmp_path: Path) -> None:
    """The distribution's python3 is of the same version, and first on the PATH, but lacks the vendor's packages."""
    interpreter_at(tmp_path / "runner" / "python3", "3.12")
    bare = interpreter_at(tmp_path / "distribution" / "python3", "3.8", torch=False)
    path = f"{tmp_path}/runner:{tmp_path}/distribution"
    assert interpreter.choose_python("3.8", {"PATH": path}) == str(bare), (
        "better than ours: the import says what it lacks"
    )
    theirs = interpreter_at(tmp_path / "vendor" / "python3", "3.8")
    assert interpreter.choose_python("3.8", {"PATH": f"{path}:{tmp_path}/vendor"}) == str(theirs)
    called = interpreter_at(tmp_path / "vendor" / "python", "3.8")
    assert interpreter.choose_python("3.8", {"PATH": f"{path}:{tmp_path}/vendor"}) == str(called), (
        "the vendor calls python"
    )


OURS = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.mark.parametrize("version", [None, OURS, "3.8"])
def test_the_named_python_is_taken_whatever_the_modules_say(tmp_path: Path, version: str | None) -> None:
    named = interpreter_at(tmp_path / "mine", "3.8", torch=False)
    assert interpreter.choose_python(version, {"PATH": "", "HEYGEM_PYTHON": str(named)}) == str(named)
    assert interpreter.check_python_variable({"HEYGEM_PYTHON": str(named)}) == ""


def test_without_a_reason_to_change_it_stays_under_ours(tmp_path: Path) -> None:
    interpreter_at(tmp_path / "python", "3.8")
    assert interpreter.choose_python(None, {"PATH": str(tmp_path)}) == sys.executable
    assert interpreter.choose_python("2.1", {"PATH": str(tmp_path)}) == sys.executable


def test_a_named_python_that_is_not_there_is_said(tmp_path: Path) -> None:
    assert "correct it or leave it out" in interpreter.check_python_variable({"HEYGEM_PYTHON": str(tmp_path / "gone")})


@pytest.mark.parametrize(
    ("ours", "first", "found"),
    [
        ({}, b"A=b\0LD_LIBRARY_PATH=/usr/local/cuda/lib64\0", {"LD_LIBRARY_PATH": "/usr/local/cuda/lib64"}),
        ({"LD_LIBRARY_PATH": "/mine"}, b"LD_LIBRARY_PATH=/theirs\0", {}),
        ({}, b"A=b\0", {}),
    ],
)
def test_the_boxs_library_path_is_taken_where_ours_is_empty(
    tmp_path: Path, ours: dict[str, str], first: bytes, found: dict[str, str]
) -> None:
    (tmp_path / "environ").write_bytes(first)
    assert interpreter.missing_libraries(ours, tmp_path / "environ") == found


def test_nothing_is_below_a_process_that_started_nothing() -> None:
    assert list_descendants(2**22 + 1) == set()


ASK = "import os, multiprocessing.queues as q; os.chdir({!r}); print(os.getcwd(), hasattr(q.Queue.get, 'stretched'))"


@pytest.mark.parametrize("child", [False, True])
def test_the_server_and_its_children_stay_in_the_private_folder(tmp_path: Path, child: bool) -> None:
    """Only the server itself waits longer: its children keep the vendor's timeouts, as in our own process."""
    home, private = tmp_path / "code", tmp_path / "private"
    for folder in (home, private):
        folder.mkdir()
    env = http_vendor.environment(home, private)
    if child:
        del env["HEYGEM_SERVER"]
    for asked, found in ((home, private), (home / "..", tmp_path)):
        argv = [sys.executable, "-c", ASK.format(str(asked))]
        said = subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout
        assert said == f"{found} {not child}\n"


def test_a_free_port_is_free() -> None:
    assert http_vendor.is_free(http_vendor.free_port())


def test_the_form_offers_what_the_worker_reads() -> None:
    heygem = endpoint.parse_endpoint((MAIN.parent / "endpoint.toml").read_text())
    assert (heygem.name, heygem.image, heygem.warm) == ("heygem", "lamplighter-heygem", True)
    assert list(heygem.input["properties"]) == ["video", "audio", "pn", "chaofen", "watermark", "digital_auth"]
    assert heygem.input["required"] == ["video", "audio"]
    assert [field.name for field in asset_fields(heygem.input, {"video": "v", "audio": "a"})] == ["video", "audio"]
    assert heygem.process is not None
    assert heygem.process.command == ("python3", "main.py")
    assert heygem.resources == endpoint.Resources(
        vram_mb=10240, gpus=1, shm_mb=8192, memory_mb=32768, cpus=4.0, disk_mb=20480
    )
