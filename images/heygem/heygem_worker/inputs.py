"""The job's files in the form that never fails there: safe names, 16 kHz mono speech, H.264 at a constant rate.

Odd names, codecs and rates are a good part of the failures that its users report; the template is cut to the length
of the speech, because it unpacks every frame of it to disk.
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

DURATION_MARGIN_S = 1.0  # of template beyond the speech
BYTES_PER_PIXEL = 3  # of a PNG, at worst: as much as the frame itself


class JobFiles(NamedTuple):
    """The job's files as they came."""

    video: Path
    audio: Path


class PreparedInputs(NamedTuple):
    """What the vendor is given, and what is to come out of it: `frames` at `fps`."""

    video: Path
    audio: Path
    audio_s: float
    fps: int
    frames: int


def prepare(
    files: JobFiles, folder: Path, tools: MediaTools, max_audio_s: float, tell: MediaProgress
) -> PreparedInputs:
    """Write both into `folder`; `tell` gets the seconds done of both together. Raises BadInput, TryAgain (disk)."""
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
