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
from heygem_worker.media import Tools
from heygem_worker.tracks import Picture, Tell, Unreadable, whole_fps
from jobkit import BadInput, TryAgain

SPARE_S = 1.0  # of template beyond the speech
BYTES_A_PIXEL = 3  # of a PNG, at worst: as much as the frame itself


class Files(NamedTuple):
    """The job's files as they came."""

    video: Path
    audio: Path


class Inputs(NamedTuple):
    """What the vendor is given, and what is to come out of it: `frames` at `fps`."""

    video: Path
    audio: Path
    audio_s: float
    fps: int
    frames: int


def prepare(files: Files, folder: Path, tools: Tools, max_audio_s: float, tell: Tell) -> Inputs:
    """Write both into `folder`; `tell` gets the seconds done of both together. Raises BadInput, TryAgain (disk)."""
    speech, template = folder / "audio.wav", folder / "video.mp4"
    with _or_bad("unreadable_audio", "audio"):
        tools.to_wav(files.audio, speech, max_audio_s + SPARE_S, tell)
        seconds = _length(speech)
    if seconds > max_audio_s:
        raise BadInput("input_too_large", f"the audio is longer than {max_audio_s:.0f} s: cut it into parts")
    with _or_bad("unreadable_video", "video"):
        picture = _picture(tools, files.video)
        limit_s = min(seconds + SPARE_S, picture.seconds or seconds + SPARE_S)
        fps = whole_fps(picture.fps)
        _check_disk(folder, picture.width * picture.height * BYTES_A_PIXEL * round(limit_s * fps))
        fresh = None if picture.plain else fps
        tools.to_video(files.video, template, fresh, limit_s, lambda done_s: tell(seconds + done_s))
    return Inputs(template, speech, seconds, fps, max(1, int(seconds * fps)))


def _picture(tools: Tools, video: Path) -> Picture:
    picture = tools.probe(video).picture
    if picture is None or not picture.fps:
        raise Unreadable("there is no picture in it")
    return picture


def _length(speech: Path) -> float:
    try:
        with wave.open(str(speech), "rb") as file:
            seconds = file.getnframes() / file.getframerate()
    except (OSError, EOFError, wave.Error) as error:
        raise Unreadable(str(error)) from error
    if seconds <= 0:
        raise Unreadable("there is no sound in it")
    return seconds


def _check_disk(folder: Path, needed: int) -> None:
    disk = os.statvfs(str(folder))
    free = disk.f_bavail * disk.f_frsize
    if free < needed:
        raise TryAgain("disk_full", f"the job may need {needed >> 20} MiB of scratch and {free >> 20} are free")


@contextlib.contextmanager
def _or_bad(code: str, what: str) -> Iterator[None]:
    try:
        yield
    except Unreadable as error:
        if (hosts := failures.at_once(str(error))) is not None:  # a full disk is not the file's fault
            raise hosts from error
        raise BadInput(code, f"the {what} cannot be read: {error}: send another file") from error
