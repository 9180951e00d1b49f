"""The port for reading and rewriting media (three calls), and the choice of the tool that implements it.

The vendor's image has ffmpeg, because the vendor calls it. PyAV is used if ffmpeg or ffprobe is missing.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from heygem_worker.ffmpeg import FfmpegTools
from heygem_worker.media_info import MediaInfo, MediaProgress
from heygem_worker.pyav import PyavTools
from jobkit import JobError


class MediaTools(Protocol):
    """Operations on media files. Each may raise MediaUnreadable; `tell` gets the seconds that are done."""

    def probe(self, path: Path) -> MediaInfo:
        """Return the streams of the file."""

    def to_wav(self, source: Path, target: Path, limit_s: float, tell: MediaProgress) -> None:
        """Write the first `limit_s` seconds of sound as 16 kHz mono s16."""

    def to_video(self, source: Path, target: Path, fps: int | None, limit_s: float, tell: MediaProgress) -> None:
        """Write the first `limit_s` seconds of video as H.264 without sound. Copy the stream if not given `fps`."""


class _ToolChoice(NamedTuple):
    made: type[MediaTools]
    there: Callable[[], bool]


TOOL_CHOICES = (
    _ToolChoice(FfmpegTools, lambda: bool(shutil.which("ffmpeg") and shutil.which("ffprobe"))),
    _ToolChoice(PyavTools, lambda: importlib.util.find_spec("av") is not None),
)


def choose_tools() -> MediaTools:
    """Return the first of TOOL_CHOICES that this image has. Raises JobError if it has neither."""
    for kind in TOOL_CHOICES:
        if kind.there():
            return kind.made()
    raise JobError("internal", "this image has neither ffmpeg with ffprobe nor PyAV: add one of them to it")
