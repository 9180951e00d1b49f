"""The facts about a media file that the worker needs."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple, Protocol

WAV_RATE = 16_000  # Hz: what its speech model hears
CRF = 15  # x264's constant rate factor: the vendor's own, so that our copy is no worse than its
MAX_FPS = 60


class MediaProgress(Protocol):
    """A callback for the seconds of media that are done."""

    def __call__(self, seconds: float, /) -> None: ...


class MediaUnreadable(Exception):
    """The file is not readable as media; the message says why."""


class VideoInfo(NamedTuple):
    """The video stream. `plain`: H.264, yuv420p, upright, constant whole rate. It can be copied without encoding."""

    seconds: float
    fps: Fraction
    width: int
    height: int
    plain: bool


class MediaInfo(NamedTuple):
    """The streams of a file. `sound_s` is in seconds. A missing stream is None."""

    picture: VideoInfo | None
    sound_s: float | None


def can_copy_video(codec: str, pixels: str, rates: tuple[Fraction, Fraction], turned: float) -> bool:
    """Return whether the stream can be copied. `rates` are the average rate and the lowest that fits all time stamps.

    They are equal where the rate is constant. The vendor works with whole rates: at 29.97 frames a second its result
    would be 0.1 % too short, so only whole rates can be copied.
    """
    constant = rates[0] == rates[1] and rates[0].denominator == 1 and rates[0] <= MAX_FPS
    return (codec, pixels) == ("h264", "yuv420p") and constant and not turned


def round_fps(rate: Fraction) -> int:
    """Return the rate of the vendor's result: that of the template, rounded."""
    return min(MAX_FPS, max(1, round(rate)))
