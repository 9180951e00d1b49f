"""Reading and rewriting of media: what we need of it as a port of three calls, and which tool does it here.

The vendor's image has ffmpeg (the vendor calls it); PyAV does the same where one of its programs is missing.
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
    """What is done to media. Each call may raise tracks.Unreadable; `tell` gets the seconds done."""

    def probe(self, path: Path) -> MediaInfo:
        """What is in the file."""

    def to_wav(self, source: Path, target: Path, limit_s: float, tell: MediaProgress) -> None:
        """The first `limit_s` seconds of sound, 16 kHz mono s16."""

    def to_video(self, source: Path, target: Path, fps: int | None, limit_s: float, tell: MediaProgress) -> None:
        """The first `limit_s` seconds of picture alone, H.264: copied where `fps` is None, else made anew at `fps`."""


class _ToolChoice(NamedTuple):
    made: type[MediaTools]
    there: Callable[[], bool]


TOOL_CHOICES = (
    _ToolChoice(FfmpegTools, lambda: bool(shutil.which("ffmpeg") and shutil.which("ffprobe"))),
    _ToolChoice(PyavTools, lambda: importlib.util.find_spec("av") is not None),
)


def choose_tools() -> MediaTools:
    """The first that is there."""
    for kind in TOOL_CHOICES:
        if kind.there():
            return kind.made()
    raise JobError("internal", "this image has neither ffmpeg with ffprobe nor PyAV: add one of them to it")
