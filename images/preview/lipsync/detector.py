"""Find the faces in whole frames with MediaPipe's BlazeFace (arXiv 1907.05047), in batches."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from .interpreter import Interpreter
from .region import Regions

_GRIDS = ((16, 2), (8, 6))  # BlazeFace's 896 anchors, the same in all square models: cells a side, anchors a cell
_SURE = 0.5
_MARGIN = 1.5  # the mesh net was trained on crops this much larger than the face
_SAME_FACE = 0.3  # detections closer to each other than this share of the face's side are one face
_FOLLOWED = 0.5  # a face is the followed one if it moved less than this share of the face's side


@dataclass(frozen=True)
class DetectedFace:
    """One face in frame pixels: the corners of its box, and the eyes on the image's left and right. 2-vectors."""

    low: torch.Tensor
    high: torch.Tensor
    left_eye: torch.Tensor
    right_eye: torch.Tensor

    @property
    def side(self) -> float:
        return float((self.high - self.low).max())

    @property
    def middle(self) -> torch.Tensor:
        return (self.low + self.high) / 2

    def region(self) -> Regions:
        along = self.right_eye - self.left_eye
        turn = torch.atan2(along[1], along[0])
        return Regions(self.middle[None], (self.high - self.low).max()[None] * _MARGIN, turn[None])


class Detector:
    def __init__(self, path: Path, device: torch.device) -> None:
        self._net = Interpreter(path, device)
        self._anchors = _anchors().to(device)

    def faces(self, frames: torch.Tensor) -> list[list[DetectedFace]]:
        """Return each frame's faces, largest first. `frames`: N, 3, H, W in 0..1."""
        small, origin, scale = _letterbox(frames, self._net.size)
        boxes, logits = self._net(small * 2 - 1)
        points = boxes.reshape(len(frames), -1, 8, 2) / self._net.size
        middle, extent, marks = points[:, :, :1], points[:, :, 1:2], points[:, :, 2:4]
        corners = torch.cat([middle - extent / 2, middle + extent / 2, marks], 2) + self._anchors[:, None]
        scores = torch.sigmoid(logits[..., 0].clamp(-80, 80))
        return [
            _merged(frame[score > _SURE] * scale + origin, score[score > _SURE])
            for frame, score in zip(corners, scores, strict=True)
        ]


def followed(faces: list[DetectedFace], last: DetectedFace | None) -> DetectedFace | None:
    """Return the face followed so far if it is still there, else the largest; None if there is no face."""
    if last is not None:
        for face in faces:
            if float((face.middle - last.middle).norm()) < _FOLLOWED * last.side:
                return face
    return faces[0] if faces else None


def _anchors() -> torch.Tensor:
    rows = []
    for cells, each in _GRIDS:
        axis = (torch.arange(cells) + 0.5) / cells
        ys, xs = torch.meshgrid(axis, axis, indexing="ij")
        rows.append(torch.stack([xs, ys], -1).reshape(-1, 2).repeat_interleave(each, 0))
    return torch.cat(rows)


def _letterbox(frames: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Fit the frames into a black square. Return them, and the square's origin and side in frame pixels."""
    height, width = frames.shape[2:]
    side = max(height, width)
    rows, columns = max(1, round(height * size / side)), max(1, round(width * size / side))
    small = F.interpolate(frames, (rows, columns), mode="bilinear", antialias=True, align_corners=False)
    left, top = (size - columns) // 2, (size - rows) // 2
    boxed = F.pad(small, (left, size - columns - left, top, size - rows - top))
    origin = torch.tensor([-left, -top], device=frames.device) * (side / size)
    return boxed, origin, float(side)


def _merged(points: torch.Tensor, scores: torch.Tensor) -> list[DetectedFace]:
    """Average overlapping detections (M, 4, 2 with M scores), weighted by score, into faces, largest first."""
    faces = []
    while len(points):
        areas = (points[:, 1] - points[:, 0]).clamp(min=1).prod(-1)
        best = int((scores * areas.sqrt()).argmax())
        middles = points[:, :2].mean(1)
        near = (middles - middles[best]).norm(dim=-1) < _SAME_FACE * areas[best].sqrt()
        weight = scores[near, None, None]
        faces.append(DetectedFace(*((points[near] * weight).sum(0) / weight.sum())))
        points, scores = points[~near], scores[~near]
    return sorted(faces, key=lambda face: -face.side)
