"""Reading and rewriting of media: what we need of it as a port of three calls, and which tool does it here.

The vendor's image has ffmpeg (the vendor calls it); PyAV does the same where one of its programs is missing.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from heygem_worker.ffmpeg import FFmpeg
from heygem_worker.pyav import PyAV
from heygem_worker.tracks import Tell, Tracks
from jobkit import JobError


class Tools(Protocol):
    """What is done to media. Each call may raise tracks.Unreadable; `tell` gets the seconds done."""

    def probe(self, path: Path) -> Tracks:
        """What is in the file."""

    def to_wav(self, source: Path, target: Path, limit_s: float, tell: Tell) -> None:
        """The first `limit_s` seconds of sound, 16 kHz mono s16."""

    def to_video(self, source: Path, target: Path, fps: int | None, limit_s: float, tell: Tell) -> None:
        """The first `limit_s` seconds of picture alone, H.264: copied where `fps` is None, else made anew at `fps`."""


class _Kind(NamedTuple):
    made: type[Tools]
    there: Callable[[], bool]


KINDS = (
    _Kind(FFmpeg, lambda: bool(shutil.which("ffmpeg") and shutil.which("ffprobe"))),
    _Kind(PyAV, lambda: importlib.util.find_spec("av") is not None),
)


def tools() -> Tools:
    """The first that is there."""
    for kind in KINDS:
        if kind.there():
            return kind.made()
    raise JobError("internal", "this image has neither ffmpeg with ffprobe nor PyAV: add one of them to it")
