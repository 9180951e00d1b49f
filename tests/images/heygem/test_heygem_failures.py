"""Every failure that HeyGem's users report, played, and what the worker makes of it."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from schemas.container_protocol import ExitCode
from schemas.lifecycle import FAILURES
from tests.images.heygem.worker_runs import WorkerRun, WorkerSamples, run_worker_job

SOON = {"HEYGEM_STALL_S": "0.5"}
IMPATIENT = {"HEYGEM_LOAD_S": "1"}

# Vendor, what goes wrong, settings -> exit code, failure code, a part of the message.
ENDS = {
    ("gen1", "faces"): ({}, 65, "multiple_faces", "one face only"),
    ("gen1", "bad_video"): ({}, 75, "internal", "format video error"),
    ("gen1", "bad_audio"): ({}, 75, "internal", "format audio error"),
    ("gen1", "forbidden"): ({}, 75, "model_load_failed", "Permission denied: './somewhere/new.txt': it writes where"),
    ("gen1", "no_cuda"): ({}, 69, "gpu_unhealthy", "Failed to create CUDAExecutionProvider"),
    ("gen1", "odd"): ({}, 75, "internal", "视频帧队列处理异常结束"),
    ("gen1", "silent_error"): ({}, 75, "internal", "an error without a text"),
    ("gen1", "no_file"): ({}, 70, "output_missing", "without a video"),
    ("gen1", "writer_exits"): ({}, 70, "output_missing", "生成视频失败"),
    ("gen1", "queue_full"): ({}, 75, "stalled", "视频驱动队列满"),
    ("gen1", "stuck"): (SOON, 75, "stalled", "did nothing for"),
    ("gen1", "oom"): ({}, 75, "cuda_oom", "CUDA error: out of memory"),
    ("gen1", "dies"): ({}, 75, "internal", "ended with exit code 9 while it was needed"),
    ("gen1", "dies_loading"): ({}, 75, "model_load_failed", "ended with exit code 3 while loading"),
    ("gen1", "never_ready"): (IMPATIENT, 70, "model_load_failed", "数字人图片处理进程启动"),
    ("gen2", "no_audio"): ({}, 75, "internal", "三次获取音频时长失败"),
    ("gen2", "no_folder"): ({}, 75, "internal", "file create failed:"),
    ("gen2", "no_final"): ({}, 75, "stalled", "no final result"),
    ("gen2", "no_file"): ({}, 70, "output_missing", "without a video"),
    ("gen2", "blocked"): ({}, 75, "stalled", "av_transfer maybe blocked"),
    ("gen2", "second"): (SOON, 75, "stalled", "did nothing for"),
    ("gen2", "dies"): ({}, 75, "internal", "was ended by signal 6 while it was needed"),
    ("gen2", "kernel"): ({}, 69, "gpu_unsupported", "build on the base for its generation"),
    ("gen2", "ep"): ({}, 69, "gpu_unhealthy", "EP Error"),
    ("gen2", "loads_for_ever"): (IMPATIENT, 70, "model_load_failed", "not ready after 1 s"),
    ("unknown", "faces"): ({}, 65, "multiple_faces", "存在多人脸"),
    ("unknown", "busy"): ({}, 75, "internal", "another program uses this HeyGem"),
    ("unknown", "forgets"): ({}, 75, "internal", "任务不存在"),
    ("unknown", "stuck"): (SOON, 75, "stalled", "did nothing for"),
    ("unknown", "dies"): ({}, 75, "internal", "the server ended with exit code 1"),
    ("unknown", "child_dies"): ({}, 75, "internal", "of the server has ended while it was needed"),
    ("nowhere", "ok"): ({}, 70, "model_load_failed", "no HeyGem in"),
}


@pytest.fixture(scope="module")
def ended(
    tmp_path_factory: pytest.TempPathFactory, samples: WorkerSamples
) -> Iterator[dict[tuple[str, str], "Future[WorkerRun]"]]:
    """All of them, some at a time: most of a run is waiting for processes to start."""
    with ThreadPoolExecutor(4) as pool:
        yield {
            (vendor, fake): pool.submit(
                run_worker_job, tmp_path_factory.mktemp(f"{vendor}-{fake}"), samples, vendor, fake, **settings
            )
            for (vendor, fake), (settings, *_) in ENDS.items()
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize(("vendor", "fake"), ENDS)
def test_ends_with_a_code_and_a_reason(
    vendor: str, fake: str, ended: dict[tuple[str, str], "Future[WorkerRun]"]
) -> None:
    _, exit_code, code, message = ENDS[vendor, fake]
    run = ended[vendor, fake].result()
    assert run.error == (exit_code, code), run.log
    assert message in run.message
    assert not [path.name for path in (run.folder / "out").iterdir()]


def test_every_code_is_one_that_lamplighter_knows() -> None:
    assert {code for _, _, code, _ in ENDS.values()} <= set(FAILURES)
    assert {exit_code for _, exit_code, _, _ in ENDS.values()} <= set(ExitCode)
