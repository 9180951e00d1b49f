"""The first pass over a clip: find the face in every picture, and the picture that shows the most of its teeth."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, tee

import numpy as np
import torch
import torch.nn.functional as F

import jobkit
from lipsync.engine import PreviewEngine

from .clip import Clip
from .landmarks import openness
from .picture import Picture, Shape
from .pose import Face, smoothed
from .teeth import MIN_OPENNESS, Teeth
from .tracker import tracks

_SIDE = 640  # the nets read crops of 192 pixels, so a larger picture would not help them
_BATCH = 11  # two stretches between detections
_STEADY = 1.0  # frames, sigma of the smoothing: landmarks jitter from frame to frame
_ENOUGH = 0.2  # share of the pictures that must show a face
_FADE = 2  # the drawing fades out and in over this many pictures before and after a loss of the face


@dataclass(frozen=True)
class Scan:
    """The face in N pictures. `points`: N, K, 3 in the result's pixels. `strength`: N, how much to draw, 0..1.

    Where the face is lost, `strength` is 0 and the points are those of the nearest picture that shows it.
    """

    points: torch.Tensor
    strength: torch.Tensor
    face: Face
    teeth: Teeth | None


@dataclass(frozen=True)
class _Widest:
    """The picture with the widest open mouth so far, and its landmarks, K, 3."""

    openness: float
    picture: Picture
    points: torch.Tensor


def scan(clip: Clip, limit: int, engine: PreviewEngine, tell: Callable[[int], None]) -> Scan:
    """Track the face in the first `limit` pictures. Raises BadInput (no_face, unreadable_video).

    `tell` gets the number of pictures done.
    """
    batches, chunks = tee(_batches(clip.pictures(0, limit)))
    widest: _Widest | None = None
    points, found, done = [], [], 0
    frames = (_frames(batch, engine.device) for batch in chunks)
    for batch, track in zip(batches, tracks(engine.faces, engine.lanes, frames), strict=True):
        placed = track.points * _scale(batch[0], clip.shape, engine.device)
        widest = _wider(widest, batch, placed, openness(placed) * track.found)
        points.append(placed.cpu())
        found.append(track.found.cpu())
        done += len(batch)
        tell(done)
    seen = torch.cat(found) if found else torch.zeros(0, dtype=torch.bool)
    if not len(seen) or seen.float().mean() < _ENOUGH:
        raise jobkit.BadInput("no_face", "no face was found in the video; send one that shows a face from the front")
    steady = smoothed(torch.cat(points)[_nearest(seen)], _STEADY)
    face = Face.of(steady[seen].to(engine.device))
    return Scan(steady, _strength(seen), face, _teeth(widest, face, engine.device))


def _batches(pictures: Iterator[Picture]) -> Iterator[list[Picture]]:
    while batch := list(islice(pictures, _BATCH)):
        yield batch


def _frames(batch: list[Picture], device: torch.device) -> torch.Tensor:
    """Return small copies of the pictures as RGB, N, 3, H, W in 0..1."""
    stacked = torch.from_numpy(np.stack([picture.rgb(_SIDE) for picture in batch])).to(device)
    return stacked.permute(0, 3, 1, 2).float() / 255


def _scale(picture: Picture, shape: Shape, device: torch.device) -> torch.Tensor:
    """Return the factors (x, y, z) from pixels of the small copies to pixels of the result. Depth scales with width."""
    width, height = picture.size(_SIDE)
    across, down = shape.width / width, shape.height / height
    return torch.tensor([across, down, across], device=device)


def _wider(widest: _Widest | None, batch: list[Picture], points: torch.Tensor, open_by: torch.Tensor) -> _Widest | None:
    best = int(open_by.argmax())
    openness = float(open_by[best])
    if openness <= (widest.openness if widest else MIN_OPENNESS):
        return widest
    return _Widest(openness, batch[best], points[best])


def _teeth(widest: _Widest | None, face: Face, device: torch.device) -> Teeth | None:
    if widest is None:
        return None
    luma, chroma = (torch.from_numpy(plane).to(device).float() / 255 for plane in widest.picture.planes())
    grown = F.interpolate(chroma[None], luma.shape, mode="bilinear", align_corners=False)[0]
    return Teeth.seen(torch.cat([luma[None], grown]), widest.points, face)


def _nearest(seen: torch.Tensor) -> torch.Tensor:
    """Return for every picture the index of the nearest one that shows the face, N."""
    places = torch.where(seen)[0]
    now = torch.arange(len(seen))
    after = torch.searchsorted(places, now).clamp(max=len(places) - 1)
    before = (after - 1).clamp(min=0)
    nearer = (now - places[before]).abs() <= (places[after] - now).abs()
    return torch.where(nearer, places[before], places[after])


def _strength(seen: torch.Tensor) -> torch.Tensor:
    """Return 1 where the face is seen and 0 where it is not, with a ramp of _FADE pictures on the seen side."""
    size = 2 * _FADE + 1
    lost = F.max_pool1d(1 - seen.float()[None, None], size, 1, _FADE)
    ramp = F.avg_pool1d(F.pad(1 - lost, (_FADE, _FADE), mode="replicate"), size, 1)
    return ramp[0, 0]
