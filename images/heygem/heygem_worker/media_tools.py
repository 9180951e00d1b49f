"""Reading and rewriting of media: a port of three calls, and the choice of the tool that implements it.

The vendor's image has ffmpeg, which the vendor calls. PyAV is used where one of ffmpeg's programs is missing.
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
    """Operations on media. Each may raise MediaUnreadable; `tell` gets the seconds that are done."""

    def probe(self, path: Path) -> MediaInfo:
        """Return the streams of the file."""

    def to_wav(self, source: Path, target: Path, limit_s: float, tell: MediaProgress) -> None:
        """Write the first `limit_s` seconds of sound as 16 kHz mono s16."""

    def to_video(self, source: Path, target: Path, fps: int | None, limit_s: float, tell: MediaProgress) -> None:
        """Write the first `limit_s` seconds of video without sound, as H.264: copied if `fps` is None, else encoded."""


class _ToolChoice(NamedTuple):
    made: type[MediaTools]
    there: Callable[[], bool]


TOOL_CHOICES = (
    _ToolChoice(FfmpegTools, lambda: bool(shutil.which("ffmpeg") and shutil.which("ffprobe"))),
    _ToolChoice(PyavTools, lambda: importlib.util.find_spec("av") is not None),
)


def choose_tools() -> MediaTools:
    """Return the first tools that this image has."""
    for kind in TOOL_CHOICES:
        if kind.there():
            return kind.made()
    raise JobError("internal", "this image has neither ffmpeg with ffprobe nor PyAV: add one of them to it")
