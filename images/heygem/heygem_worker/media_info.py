"""What a media file holds."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple, Protocol

WAV_RATE = 16_000  # Hz: what its speech model hears
CRF = 15  # x264's constant rate factor: the vendor's own, so that our copy is no worse than its
MAX_FPS = 60


class MediaProgress(Protocol):
    """Hears how many seconds of media are done."""

    def __call__(self, seconds: float, /) -> None: ...


class MediaUnreadable(Exception):
    """The file is no media that can be read; the message says why."""


class VideoInfo(NamedTuple):
    """`plain`: H.264, yuv420p, upright, at a constant whole rate: what can be copied instead of encoded again."""

    seconds: float
    fps: Fraction
    width: int
    height: int
    plain: bool


class MediaInfo(NamedTuple):
    """`sound_s` in seconds; None for what is not there."""

    picture: VideoInfo | None
    sound_s: float | None


def can_copy_video(codec: str, pixels: str, rates: tuple[Fraction, Fraction], turned: float) -> bool:
    """`rates`: the average and the lowest that all time stamps fit; equal where the rate is constant.

    The vendor works with whole rates: at 29.97 frames a second its result would be 0.1 % too short, so only whole
    rates pass.
    """
    constant = rates[0] == rates[1] and rates[0].denominator == 1 and rates[0] <= MAX_FPS
    return (codec, pixels) == ("h264", "yuv420p") and constant and not turned


def round_fps(rate: Fraction) -> int:
    """The rate that the vendor gives its result: the template's, rounded."""
    return min(MAX_FPS, max(1, round(rate)))
