"""Order the pictures of a clip. A clip shorter than the speech runs forward, then backward, so that nothing jumps."""

from collections.abc import Iterator

import jobkit

from .clip import Clip
from .picture import Picture

_HELD_BYTES = 256 << 20  # decoded pictures held in memory while running backward: files decode forward only
_DEEPEST = 6  # bytes per pixel of the largest format that a decoder returns (16 bit 4:4:4)


def back_and_forth(clip: Clip, length: int, total: int) -> Iterator[tuple[int, Picture]]:
    """Yield `total` pictures with their indices in the clip, which has `length` pictures.

    Raises BadInput if the clip yields no picture when it is read again.
    """
    given = 0
    while given < total:
        before = given
        for place, picture in _round_trip(clip, length):
            yield place, picture
            given += 1
            if given == total:
                return
        if given == before:
            raise jobkit.BadInput("unreadable_video", "the video reads differently the second time; send another file")


def _round_trip(clip: Clip, length: int) -> Iterator[tuple[int, Picture]]:
    """Yield the pictures forward, then backward. The turning points are not repeated."""
    yield from enumerate(clip.pictures(0, length))
    held = max(1, _HELD_BYTES // (clip.source_pixels * _DEEPEST))
    for stop in range(length - 1, 1, -held):
        start = max(1, stop - held)
        yield from reversed(list(enumerate(clip.pictures(start, stop), start)))
