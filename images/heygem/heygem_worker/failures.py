"""Map the vendor's messages to failures: the job's error code, whose fault it is, and the advice.

The messages were published by users (logs, issues, answers of the HTTP API). The first matching rule wins, so causes
stand before their consequences.
"""

from __future__ import annotations

from typing import NamedTuple

from jobkit import BadInput, GpuUnusable, JobError, TryAgain


class FailureRule(NamedTuple):
    """A text of the vendor and its failure. `at_once`: fail as soon as a log line has it; no result will come."""

    text: str
    code: str
    raises: type[JobError]
    at_once: bool
    advice: str


LESS = "lower HEYGEM_BATCH_SIZE, set HEYGEM_SHARPEN=never, or use a GPU with more memory"
DRIVER = "the GPU, its driver and this image do not fit together: see README.md"
OTHER_BASE = "this image has no code for the GPU: build on the base for its generation, see README.md"
FACE = "send a video that shows one face only; if it does, build with the larger detector: see DETECTOR in README.md"
OUR_FILE = "it could not use a file that this worker wrote for it: the disk may be full, or its ffmpeg or ffprobe fail"
AGAIN = "HeyGem blocked; a new container usually gets past it"
RIGHTS = "it writes where the job may not write: run images/heygem/selfcheck on this image and report what it prints"

# The vendor gets only files that this worker has rewritten, never the client's own. So the client is at fault only
# where a message is about the content: the faces.
FAILURE_RULES = (
    FailureRule("out of memory", "cuda_oom", TryAgain, True, LESS),
    FailureRule("no kernel image", "gpu_unsupported", GpuUnusable, True, OTHER_BASE),
    FailureRule("CUDA driver version is insufficient", "gpu_unsupported", GpuUnusable, True, DRIVER),
    FailureRule("cudaGetDeviceCount", "gpu_unhealthy", GpuUnusable, True, DRIVER),
    FailureRule("EP Error", "gpu_unhealthy", GpuUnusable, True, DRIVER),
    FailureRule("Failed to create CUDAExecutionProvider", "gpu_unhealthy", GpuUnusable, True, DRIVER),
    FailureRule("Cannot allocate memory", "out_of_memory", JobError, True, "raise memory_mb"),
    FailureRule("No space left on device", "disk_full", TryAgain, True, "the host needs more disk: see disk_mb"),
    FailureRule("视频驱动队列满", "stalled", TryAgain, True, AGAIN),
    FailureRule("av_transfer maybe blocked", "stalled", TryAgain, True, AGAIN),
    FailureRule("no final result", "stalled", TryAgain, False, AGAIN),
    FailureRule("存在多人脸", "multiple_faces", BadInput, False, FACE),
    FailureRule("Permission denied", "internal", JobError, False, RIGHTS),
    FailureRule("Read-only file system", "internal", JobError, False, RIGHTS),
    FailureRule("file create failed:", "internal", TryAgain, False, "the disk may be full: see disk_mb"),
    FailureRule("format video error", "internal", TryAgain, False, OUR_FILE),
    FailureRule("视频下载失败", "internal", TryAgain, False, OUR_FILE),
    FailureRule("format audio error", "internal", TryAgain, False, OUR_FILE),
    FailureRule("三次获取音频时长失败", "internal", TryAgain, False, OUR_FILE),
    FailureRule("音频下载失败", "internal", TryAgain, False, OUR_FILE),
    FailureRule("音频特征提取失败", "internal", TryAgain, False, OUR_FILE),
    FailureRule("视频入参或音频入参下载处理异常", "internal", TryAgain, False, OUR_FILE),
    FailureRule("生成视频失败", "output_missing", JobError, False, "look into the job's log for ffmpeg's words"),
    FailureRule("忙碌中", "internal", TryAgain, False, "another program uses this HeyGem"),
)

# An error without a text means that the vendor's face detection timed out (queue_timeout.py).
NO_TEXT_RULE = FailureRule(
    "", "internal", TryAgain, False, "its face detection did not answer in time; a new container may"
)
UNKNOWN_TEXT_RULE = FailureRule("", "internal", TryAgain, False, "look into the job's log")


def classify_text(said: str) -> JobError:
    """Return the failure for the vendor's final message `said`, which may be empty."""
    row = next((row for row in FAILURE_RULES if row.text in said), UNKNOWN_TEXT_RULE if said.strip() else NO_TEXT_RULE)
    return _make_failure(row, said.strip() or "an error without a text")


class DeathClue:
    """The last log line that may explain why a process died, although the line alone is not a failure."""

    def __init__(self) -> None:
        self._line = ""

    def feed(self, line: str) -> None:
        """Remember a line of the vendor's log if it may explain a death."""
        row = next((row for row in FAILURE_RULES if row.text in line), None)
        if row is not None and not row.at_once:
            self._line = f"; it said: {line.strip()[-500:]}: {row.advice}"

    def __str__(self) -> str:
        """Return the explanation to append to a message, or an empty text."""
        return self._line


def find_fatal_failure(line: str) -> JobError | None:
    """Return the failure that a log line announces, or None."""
    row = next((row for row in FAILURE_RULES if row.at_once and row.text in line), None)
    return _make_failure(row, line.strip()) if row else None


def _make_failure(row: FailureRule, said: str) -> JobError:
    return row.raises(row.code, f"HeyGem: {said[-500:]}: {row.advice}")
