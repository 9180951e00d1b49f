"""Find the resulting video, check it, and make it the job's output.

The check is needed because the vendor ignores the exit code of its last ffmpeg.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from heygem_worker.inputs import PreparedInputs
from heygem_worker.media_info import MediaUnreadable, VideoInfo
from heygem_worker.media_tools import MediaTools
from jobkit import Job, JobError

NAME = "result.mp4"
FRAMES_TOLERANCE = 2  # results that were too short by this many frames have been seen
DURATION_TOLERANCE_S = 0.5


def find(places: Iterable[Path]) -> Path:
    """Return the first of `places` with a video in it. Raises JobError `output_missing`."""
    for path in places:
        if path.is_file() and path.stat().st_size:
            return path
    raise JobError("output_missing", "HeyGem ended without a video: see the job's log")


def check(path: Path, tools: MediaTools, given: PreparedInputs) -> VideoInfo:
    """Check that the video can be read, has sound, and is as long as the speech. Raises JobError `output_invalid`."""
    try:
        tracks = tools.probe(path)
    except MediaUnreadable as error:
        raise JobError("output_invalid", f"HeyGem's video cannot be read: {error}") from error
    if tracks.picture is None or tracks.sound_s is None:
        raise JobError("output_invalid", "HeyGem's video lacks its " + ("sound" if tracks.picture else "picture"))
    allowed = FRAMES_TOLERANCE / max(1.0, float(tracks.picture.fps)) + DURATION_TOLERANCE_S
    for what, seconds in (("picture", tracks.picture.seconds), ("sound", tracks.sound_s)):
        if abs(seconds - given.audio_s) > allowed:
            raise JobError("output_invalid", f"the {what} lasts {seconds:.2f} s and the speech {given.audio_s:.2f} s")
    return tracks.picture


def hand_over(job: Job, video: Path) -> None:
    """Move the video to the job's outputs. If tmp/ and out/ are different mounts, this copies the file."""
    with job.output(NAME) as path:
        shutil.move(str(video), str(path))
