"""One frame of the client's video, converted from any format to upright YUV 4:2:0 of even size."""

from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt

import jobkit

Bytes = npt.NDArray[np.uint8]
_LARGEST = 8192 * 4320
"""Pixels of a source frame that are accepted: 8K."""
_LIMITED = 1  # AVColorRange: limited range, which players expect in H.264


@dataclass(frozen=True)
class Shape:
    """The properties that all pictures of a clip share.

    `width` and `height`: even, after the `turns` quarter turns that make a frame upright. The rest tells players how to
    show the pictures: pixel aspect ratio, colour matrix, primaries and transfer function.
    """

    width: int
    height: int
    turns: int
    pixel_aspect: Fraction
    matrix: int
    primaries: int
    transfer: int

    @classmethod
    def of(cls, frame: av.VideoFrame, pixel_aspect: Fraction | None, max_side: int) -> "Shape":
        """Return the working shape for frames like this one. Raises BadInput if the frame is larger than 8K."""
        if frame.width * frame.height > _LARGEST:
            size = f"{frame.width}x{frame.height}"
            raise jobkit.BadInput("input_too_large", f"the video is {size}, more than 8K; send a smaller one")
        turns = round(frame.rotation / 90) % 4
        scale = min(1.0, max_side / max(frame.width, frame.height))
        width, height = _swapped(_even(frame.width * scale), _even(frame.height * scale), turns)
        aspect = pixel_aspect or Fraction(1)
        upright = 1 / aspect if turns % 2 else aspect
        return cls(width, height, turns, upright, frame.colorspace, frame.color_primaries, frame.color_trc)


class Picture:
    """A decoded frame of the client's video. Each call converts it to the format that it returns."""

    def __init__(self, frame: av.VideoFrame, shape: Shape) -> None:
        self._frame = frame
        self._shape = shape

    def planes(self) -> tuple[Bytes, Bytes]:
        """Return copies of luma H, W and chroma 2, H/2, W/2, in limited range."""
        shape = self._shape
        width, height = _swapped(shape.width, shape.height, shape.turns)
        frame = self._frame.reformat(width, height, "yuv420p", dst_color_range=_LIMITED)
        luma, *chroma = (np.rot90(_samples(plane), shape.turns) for plane in frame.planes)
        return luma.copy(), np.stack(chroma)

    def rgb(self, side: int) -> Bytes:
        """Return the picture as RGB, H, W, 3, with its longer side at most `side`."""
        shape = self._shape
        width, height = _swapped(*self.size(side), shape.turns)
        frame = self._frame.reformat(width, height, "rgb24")
        rows = _samples(frame.planes[0], 3)
        return np.rot90(rows.reshape(height, width, 3), shape.turns).copy()

    def size(self, side: int) -> tuple[int, int]:
        """Return the width and height of `rgb(side)`."""
        scale = min(1.0, side / max(self._shape.width, self._shape.height))
        return _even(self._shape.width * scale), _even(self._shape.height * scale)


def _samples(plane: av.video.plane.VideoPlane, each: int = 1) -> Bytes:
    """Return a plane's bytes without the padding at the end of its rows: H, W * each."""
    flat: Bytes = np.frombuffer(memoryview(plane), np.uint8)
    return flat.reshape(plane.height, plane.line_size)[:, : plane.width * each]


def _even(length: float) -> int:
    return max(2, int(length) // 2 * 2)


def _swapped(width: int, height: int, turns: int) -> tuple[int, int]:
    return (height, width) if turns % 2 else (width, height)
