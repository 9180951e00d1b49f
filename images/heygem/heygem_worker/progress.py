"""Measure a job's progress in frames written, because the vendor's own figure stays at 20 % most of the time.

The vendor's figure and log lines give the stage. The number of frames is the largest of three counts: our wrapper of
the vendor's writer, its log, and the avi files in its working folder. Its png files do not count: they are frames of
the template, which the vendor unpacks before it renders the first frame. A new file of any kind shows that it is alive.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from heygem_worker.vendor import VendorStatus

FRAME = re.compile(r"frameId:(\d+)")
TOTAL = re.compile(r"任务视频驱动队列启动.*?len:(\d+)")
WRITTEN = "视频帧队列处理已结束"  # the last frame is written; next, sound and picture are joined


class ProgressStage(NamedTuple):
    """A part of the work, and the shares of the whole at which it begins and ends."""

    name: str
    begins: float
    ends: float


PREPARE = ProgressStage("prepare", 0.0, 0.05)
ANALYSE = ProgressStage("analyse", 0.05, 0.10)
RENDER = ProgressStage("render", 0.10, 0.90)
JOIN = ProgressStage("join", 0.90, 0.98)
CHECK = ProgressStage("check", 0.98, 1.0)

FRAMES_IN = "avi"  # the folder with one file for each part that was rendered
JOINING = 90  # all frames are rendered once the vendor's own figure has reached this


class ProgressMeter:
    """The progress of one job. `total` is the expected number of frames until the vendor reports one."""

    def __init__(self, total: int, counter: Path, folders: Iterable[Path], results: Iterable[Path]) -> None:
        self._total = total
        self._counter = counter
        self._folders = list(folders)
        self._results = list(results)
        self._frames = 0
        self._files = 0
        self._bytes = 0
        self._stage = ANALYSE

    def feed(self, line: str) -> None:
        """Update the progress from a line of the vendor's log."""
        total, frame = TOTAL.search(line), FRAME.search(line)
        if total and int(total.group(1)):
            self._total = int(total.group(1))
        if frame:
            self._set_frames(int(frame.group(1)))
        if WRITTEN in line:
            self._stage = JOIN

    def update(self, look: VendorStatus) -> None:
        """Update the progress from the vendor's status and the files on the disk."""
        self._set_frames(_size(self._counter))
        counts = {folder: _count(folder) for folder in self._folders}
        self._set_frames(max((count for folder, count in counts.items() if folder.name == FRAMES_IN), default=0))
        self._files = sum(counts.values())
        if look.progress >= JOINING:
            self._stage = JOIN
        self._bytes = max((_size(path) for path in self._results), default=0)

    def _set_frames(self, frames: int) -> None:
        self._frames = max(self._frames, min(frames, self._total))
        if self._frames and self._stage is ANALYSE:
            self._stage = RENDER

    @property
    def activity(self) -> tuple[str, int, int, int]:
        """A value that changes whenever the vendor has done something; the watchdog compares it."""
        return (self._stage.name, self._frames, self._files, self._bytes)

    def report(self, say: Callable[..., None]) -> None:
        """Call `say(fraction, stage, done, total)`. `done` counts files, then frames (render), then KiB (join)."""
        stage = self._stage
        if stage is RENDER:
            say(
                stage.begins + (stage.ends - stage.begins) * self._frames / self._total,
                stage.name,
                self._frames,
                self._total,
            )
        elif stage is JOIN:
            say(stage.begins, stage.name, self._bytes >> 10, None)
        else:
            say(stage.begins, stage.name, self._files, None)


def preparation_progress(say: Callable[..., None]) -> Callable[[float], None]:
    """Return a callback for the seconds of media that are prepared."""
    return lambda seconds: say(PREPARE.begins, PREPARE.name, int(seconds), None)


def label_progress(say: Callable[..., None], total_s: float) -> Callable[[float], None]:
    """Return a callback for the seconds of the result that have the operator's label."""
    share = (CHECK.ends - CHECK.begins) / max(total_s, 1.0)
    return lambda seconds: say(CHECK.begins + share * min(seconds, total_s), "label", int(seconds), int(total_s))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _count(folder: Path) -> int:
    try:
        return len(os.listdir(folder))  # noqa: PTH208 - names are enough, and there may be 50,000
    except OSError:
        return 0
