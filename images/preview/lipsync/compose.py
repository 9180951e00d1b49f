"""The second pass over a clip: draw the mouth in every picture, in a box around it, and pass it to the writer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from lipsync.encode import VideoWriter
from lipsync.engine import PreviewEngine
from lipsync.render import Boxes, Person, RenderBatch, render

from .landmarks import BELOW_LIP, LEFT_SIDE, RIGHT_SIDE
from .picture import Bytes, Picture, Shape
from .scan import Scan

_BOX, _WINDOW = 1.2, 1.6  # sides of the box, in face widths, and of the window, in mouth widths
_USUAL = 0.98  # the box fits this share of the pictures, so that a glitch of the tracker does not make it large
_SMALLEST = 32
_PIXELS = {"cpu": 600_000, "cuda": 8_000_000}  # box pixels in a batch: fit the CPU's cache, keep a GPU busy
_MOST = 24  # pictures in a batch; all of them are in memory at once


@dataclass(frozen=True)
class Layout:
    """Sides of the box that is warped and of the window that is redrawn, and the boxes' corners, N, 2 (x, y).

    All are even numbers of pixels.
    """

    box: int
    window: int
    corners: npt.NDArray[np.int64]

    @classmethod
    def of(cls, scan: Scan, shape: Shape) -> "Layout":
        widths = (scan.points[:, RIGHT_SIDE] - scan.points[:, LEFT_SIDE]).norm(dim=-1)
        face = float(widths.quantile(_USUAL))
        box = min(_even(max(_BOX * face, _SMALLEST)), _even(shape.width), _even(shape.height))
        mouth = face * float(scan.face.unit) / float((scan.face.skull[RIGHT_SIDE] - scan.face.skull[LEFT_SIDE]).norm())
        middle = scan.points[:, BELOW_LIP, :2]
        room = torch.tensor([shape.width - box, shape.height - box])
        corners = torch.minimum(((middle - box / 2) / 2).round().clamp(min=0) * 2, room)
        return cls(box, min(_even(_WINDOW * mouth), box), corners.long().numpy())


@dataclass(frozen=True)
class _Batch:
    """Consecutive pictures of the result: their indices in the scan, their planes, and their curves N, 5."""

    places: list[int]
    planes: list[tuple[Bytes, Bytes]]
    curves: torch.Tensor


class Composer:
    """Draws the pictures of one result in batches, on the engine's lanes."""

    def __init__(self, scan: Scan, person: Person, layout: Layout, engine: PreviewEngine) -> None:
        self._scan, self._person, self._layout, self._engine = scan, person, layout, engine
        self._batch = min(_MOST, max(1, _PIXELS[engine.device.type] // layout.box**2))

    def compose(
        self,
        shown: Iterator[tuple[int, Picture]],
        curves: torch.Tensor,
        writer: VideoWriter,
        tell: Callable[[int], None],
    ) -> None:
        """Draw len(curves) pictures and pass them to `writer`. `tell` gets the number of pictures done."""
        done = 0
        for batch in self._engine.lanes.ordered(self._drawn, self._batches(shown, curves)):
            for luma, chroma in batch:
                writer.add(luma, chroma)
            done += len(batch)
            tell(done)

    def _batches(self, shown: Iterator[tuple[int, Picture]], curves: torch.Tensor) -> Iterator[_Batch]:
        start = 0
        while batch := list(islice(shown, self._batch)):
            places, pictures = zip(*batch, strict=True)
            yield _Batch(list(places), [picture.planes() for picture in pictures], curves[start : start + len(batch)])
            start += len(batch)

    def _drawn(self, batch: _Batch) -> list[tuple[Bytes, Bytes]]:
        """Draw the mouths into the batch's planes, and return the planes."""
        strength = self._scan.strength[batch.places]
        if not strength.any():
            return batch.planes
        corners = self._layout.corners[batch.places]
        cuts = [_cut(planes, corner, self._layout.box) for planes, corner in zip(batch.planes, corners, strict=True)]
        points = self._scan.points[batch.places]
        points[..., :2] -= torch.from_numpy(corners)[:, None]
        boxes = Boxes(self._floats([luma[None] for luma, _ in cuts]), self._floats([chroma for _, chroma in cuts]))
        device = self._engine.device
        scene = RenderBatch(boxes, points.to(device), batch.curves, strength.to(device))
        drawn = render(scene, self._person, self._layout.window)
        for i, (luma, chroma) in enumerate(cuts):
            luma[:], chroma[:] = _bytes(drawn.luma[i, 0]), _bytes(drawn.chroma[i])
        return batch.planes

    def _floats(self, cuts: list[Bytes]) -> torch.Tensor:
        return torch.from_numpy(np.stack(cuts)).to(self._engine.device).float() / 255


def _cut(planes: tuple[Bytes, Bytes], corner: npt.NDArray[np.int64], side: int) -> tuple[Bytes, Bytes]:
    """Return views of the box in the luma and chroma planes; drawing into them changes the picture."""
    (luma, chroma), (left, top), half = planes, corner, side // 2
    x, y = left // 2, top // 2
    return luma[top : top + side, left : left + side], chroma[:, y : y + half, x : x + half]


def _bytes(plane: torch.Tensor) -> Bytes:
    rounded: Bytes = (plane * 255).round().clamp(0, 255).byte().cpu().numpy()
    return rounded


def _even(length: float) -> int:
    return int(length) // 2 * 2
