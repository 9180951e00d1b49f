"""Rewrite the job's files into a form that the vendor handles.

That form is safe names, 16 kHz mono speech, and H.264 at a constant rate.

Unusual names, codecs and rates cause many of the failures that the vendor's users report. The template is cut to the
length of the speech, because the vendor unpacks every frame of the template to disk.
"""

from __future__ import annotations

import contextlib
import os
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from heygem_worker import failures
from heygem_worker.media_info import MediaProgress, MediaUnreadable, VideoInfo, round_fps
from heygem_worker.media_tools import MediaTools
from jobkit import BadInput, TryAgain

DURATION_MARGIN_S = 1.0  # the template may be longer than the speech by this
BYTES_PER_PIXEL = 3  # of a PNG in the worst case: as large as the raw frame


class JobFiles(NamedTuple):
    """The job's input files as the client sent them."""

    video: Path
    audio: Path


class PreparedInputs(NamedTuple):
    """The rewritten files, and the expected result: `frames` frames at `fps` frames a second."""

    video: Path
    audio: Path
    audio_s: float
    fps: int
    frames: int


def prepare(
    files: JobFiles, folder: Path, tools: MediaTools, max_audio_s: float, tell: MediaProgress
) -> PreparedInputs:
    """Write both rewritten files into `folder`. Raises BadInput, and TryAgain if the disk is too small.

    `tell` gets the seconds of media done so far, audio and video together.
    """
    speech, template = folder / "audio.wav", folder / "video.mp4"
    with _map_unreadable("unreadable_audio", "audio"):
        tools.to_wav(files.audio, speech, max_audio_s + DURATION_MARGIN_S, tell)
        seconds = _probe_duration_s(speech)
    if seconds > max_audio_s:
        raise BadInput("input_too_large", f"the audio is longer than {max_audio_s:.0f} s: cut it into parts")
    with _map_unreadable("unreadable_video", "video"):
        picture = _probe_video(tools, files.video)
        limit_s = min(seconds + DURATION_MARGIN_S, picture.seconds or seconds + DURATION_MARGIN_S)
        fps = round_fps(picture.fps)
        _check_disk(folder, picture.width * picture.height * BYTES_PER_PIXEL * round(limit_s * fps))
        fresh = None if picture.plain else fps
        tools.to_video(files.video, template, fresh, limit_s, lambda done_s: tell(seconds + done_s))
    return PreparedInputs(template, speech, seconds, fps, max(1, int(seconds * fps)))


def _probe_video(tools: MediaTools, video: Path) -> VideoInfo:
    picture = tools.probe(video).picture
    if picture is None or not picture.fps:
        raise MediaUnreadable("there is no picture in it")
    return picture


def _probe_duration_s(speech: Path) -> float:
    try:
        with wave.open(str(speech), "rb") as file:
            seconds = file.getnframes() / file.getframerate()
    except (OSError, EOFError, wave.Error) as error:
        raise MediaUnreadable(str(error)) from error
    if seconds <= 0:
        raise MediaUnreadable("there is no sound in it")
    return seconds


def _check_disk(folder: Path, needed: int) -> None:
    disk = os.statvfs(str(folder))
    free = disk.f_bavail * disk.f_frsize
    if free < needed:
        raise TryAgain("disk_full", f"the job may need {needed >> 20} MiB of scratch and {free >> 20} are free")


@contextlib.contextmanager
def _map_unreadable(code: str, what: str) -> Iterator[None]:
    try:
        yield
    except MediaUnreadable as error:
        if (hosts := failures.find_fatal_failure(str(error))) is not None:  # a full disk is not the file's fault
            raise hosts from error
        raise BadInput(code, f"the {what} cannot be read: {error}: send another file") from error
