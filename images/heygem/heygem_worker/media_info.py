"""The facts about a media file that the worker needs."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple, Protocol

WAV_RATE = 16_000  # Hz: the input rate of the vendor's speech model
CRF = 15  # x264's constant rate factor: the vendor's own value, so that our copy is no worse than the vendor's
MAX_FPS = 60


class MediaProgress(Protocol):
    """A callback that gets the seconds of media that are done."""

    def __call__(self, seconds: float, /) -> None: ...


class MediaUnreadable(Exception):
    """A file cannot be read as media; the message says why."""


class VideoInfo(NamedTuple):
    """The video stream. `plain`: it can be copied without encoding (H.264, yuv420p, upright, constant integer rate)."""

    seconds: float
    fps: Fraction
    width: int
    height: int
    plain: bool


class MediaInfo(NamedTuple):
    """The streams of a file; None for a missing one. `sound_s`: duration of the sound in seconds."""

    picture: VideoInfo | None
    sound_s: float | None


def can_copy_video(codec: str, pixels: str, rates: tuple[Fraction, Fraction], turned: float) -> bool:
    """Return whether the stream can be copied. `rates`: the average rate, and the lowest that fits all timestamps.

    The two are equal if the rate is constant. The vendor works with integer rates: at 29.97 frames a second its result
    would be 0.1 % too short, so only integer rates can be copied.
    """
    constant = rates[0] == rates[1] and rates[0].denominator == 1 and rates[0] <= MAX_FPS
    return (codec, pixels) == ("h264", "yuv420p") and constant and not turned


def round_fps(rate: Fraction) -> int:
    """Return the frame rate of the vendor's result: the template's, rounded to 1..MAX_FPS."""
    return min(MAX_FPS, max(1, round(rate)))
