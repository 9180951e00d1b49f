"""What the vendor's texts mean: our failure code, whose fault it is, and what to do. One table, the first match wins.

Texts as users have published them (logs, issues, answers of the HTTP API); causes before consequences.
"""

from __future__ import annotations

from typing import NamedTuple

from jobkit import BadInput, GpuUnusable, JobError, TryAgain


class Row(NamedTuple):
    """`text` in what the vendor says means `code`; `at_once`: a log line with it means that nothing will come."""

    text: str
    code: str
    raises: type[JobError]
    at_once: bool
    advice: str


LESS = "lower HEYGEM_BATCH_SIZE or chaofen, or use a card with more memory"
DRIVER = "the card, its driver and this image do not fit together: see README.md"
OTHER_BASE = "this image has no code for the card: build on the base for its generation, see README.md"
FACE = "send a video that shows one face only"
VIDEO = "send another video file"
AUDIO = "send another audio file"
AGAIN = "HeyGem blocked; a new container usually gets past it"

TABLE = (
    Row("out of memory", "cuda_oom", TryAgain, True, LESS),
    Row("no kernel image", "gpu_unsupported", GpuUnusable, True, OTHER_BASE),
    Row("EP Error", "gpu_unhealthy", GpuUnusable, True, DRIVER),
    Row("Cannot allocate memory", "out_of_memory", JobError, True, "raise memory_mb"),
    Row("No space left on device", "disk_full", TryAgain, True, "the host needs more disk: see disk_mb"),
    Row("视频驱动队列满", "stalled", TryAgain, True, AGAIN),
    Row("av_transfer maybe blocked", "stalled", TryAgain, True, AGAIN),
    Row("no final result", "stalled", TryAgain, False, AGAIN),
    Row("存在多人脸", "multiple_faces", BadInput, False, FACE),
    Row("format video error", "unreadable_video", BadInput, False, VIDEO),
    Row("视频下载失败", "unreadable_video", BadInput, False, VIDEO),
    Row("format audio error", "unreadable_audio", BadInput, False, AUDIO),
    Row("三次获取音频时长失败", "unreadable_audio", BadInput, False, AUDIO),
    Row("音频下载失败", "unreadable_audio", BadInput, False, AUDIO),
    Row("音频特征提取失败", "unreadable_audio", BadInput, False, AUDIO),
    Row("视频入参或音频入参下载处理异常", "bad_input", BadInput, False, "send other files"),
    Row("生成视频失败", "output_missing", JobError, False, "look into the job's log for ffmpeg's words"),
    Row("忙碌中", "internal", TryAgain, False, "another program uses this HeyGem"),
)

# An error without a text is its face detector, which did not answer within the 10 s that it is given.
SILENT = Row("", "internal", TryAgain, False, "its face detection did not answer in time; a new container may")
UNKNOWN = Row("", "internal", TryAgain, False, "look into the job's log")


def of(said: str) -> JobError:
    """The failure that the vendor's final words come to."""
    row = next((row for row in TABLE if row.text in said), UNKNOWN if said.strip() else SILENT)
    return _failure(row, said.strip() or "an error without a text")


def at_once(line: str) -> JobError | None:
    """The failure that a log line announces, or None."""
    row = next((row for row in TABLE if row.at_once and row.text in line), None)
    return _failure(row, line.strip()) if row else None


def _failure(row: Row, said: str) -> JobError:
    return row.raises(row.code, f"HeyGem: {said[-500:]}: {row.advice}")
