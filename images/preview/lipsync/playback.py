"""Which picture is shown when: a clip shorter than the speech runs forward, then backward, so that nothing jumps."""

from collections.abc import Iterator

import jobkit

from .clip import Clip
from .picture import Picture

_HELD_BYTES = 256 << 20  # of decoded pictures while running backward: files decode forward only
_DEEPEST = 6  # bytes a pixel of the widest formats that a decoder gives (16 bit 4:4:4)


def back_and_forth(clip: Clip, length: int, total: int) -> Iterator[tuple[int, Picture]]:
    """`total` pictures with their places in the clip, which has `length`."""
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
    """There and back, without the turning points twice."""
    yield from enumerate(clip.pictures(0, length))
    held = max(1, _HELD_BYTES // (clip.source_pixels * _DEEPEST))
    for stop in range(length - 1, 1, -held):
        start = max(1, stop - held)
        yield from reversed(list(enumerate(clip.pictures(start, stop), start)))
