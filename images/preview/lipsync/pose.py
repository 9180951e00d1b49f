"""Estimate the head pose, and remove it from the landmarks: the face as seen from straight ahead."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .landmarks import (
    BRIDGE,
    CHIN,
    FOREHEAD,
    LEFT_CORNER,
    LEFT_EYE,
    LOWER_MIDDLE,
    RIGHT_CORNER,
    RIGHT_EYE,
    SKULL,
    UPPER_MIDDLE,
)

_SAMPLE = 500  # number of frames from which the face of a clip is estimated
_SHUT_SHARE = 5  # the fifth of the frames with the most closed mouth shows the mouth at rest


@dataclass(frozen=True)
class Pose:
    """N similarities from face space to frame pixels: pixel = scale * rotation @ face + shift."""

    scale: torch.Tensor
    rotation: torch.Tensor
    shift: torch.Tensor

    def onto_frame(self, shapes: torch.Tensor) -> torch.Tensor:
        """Convert points N, K, 3 from face space to frame pixels."""
        return self.scale[:, None, None] * (shapes @ self.rotation.transpose(1, 2)) + self.shift[:, None]

    def off_frame(self, points: torch.Tensor) -> torch.Tensor:
        """Convert points N, K, 3 from frame pixels to face space."""
        return (points - self.shift[:, None]) @ self.rotation / self.scale[:, None, None]


@dataclass(frozen=True)
class Face:
    """One person's face in face space (x to the image's right, y down, origin between the eyes), K, 3 each.

    `skull`: median over the clip; poses are estimated with it. `rest`: median of the frames with the most closed mouth.
    `unit`: width of the mouth at rest, the unit of all mouth movements.
    """

    skull: torch.Tensor
    rest: torch.Tensor
    unit: torch.Tensor

    @classmethod
    def of(cls, points: torch.Tensor) -> "Face":
        """Estimate the face from the landmarks of the frames that show it, N, K, 3."""
        sample = points[:: max(1, len(points) // _SAMPLE)]
        skull = _straightened(sample[len(sample) // 2])
        for _ in range(2):
            seen = similarity(skull[SKULL], sample[:, SKULL]).off_frame(sample)
            skull = seen.median(0).values
        gaps = seen[:, LOWER_MIDDLE, 1] - seen[:, UPPER_MIDDLE, 1]
        rest = seen[gaps.argsort()[: max(1, len(seen) // _SHUT_SHARE)]].median(0).values
        return cls(skull, rest, (rest[RIGHT_CORNER] - rest[LEFT_CORNER]).norm())

    def pose(self, points: torch.Tensor) -> Pose:
        """Return the head's pose in each frame, from landmarks N, K, 3."""
        return similarity(self.skull[SKULL], points[:, SKULL])


def similarity(shape: torch.Tensor, points: torch.Tensor) -> Pose:
    """Return the N least-squares similarities from K, 3 to N, K, 3 (Umeyama 1991, equations 40-42)."""
    middle, middles = shape.mean(0), points.mean(1)
    centred = shape - middle
    covariance = (points - middles[:, None]).transpose(1, 2) @ centred
    u, spread, vt = torch.linalg.svd(covariance)
    signs = torch.ones_like(spread)
    signs[:, 2] = torch.det(u @ vt).sign()
    rotation = u @ torch.diag_embed(signs) @ vt
    scale = (spread * signs).sum(1) / centred.square().sum()
    return Pose(scale, rotation, middles - scale[:, None] * (rotation @ middle))


def smoothed(rows: torch.Tensor, sigma: float) -> torch.Tensor:
    """Smooth rows N, ... over time with a Gaussian of `sigma` frames. The padding repeats the first and last row."""
    reach = max(1, int(3 * sigma))
    offsets = torch.arange(-reach, reach + 1, device=rows.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    series = F.pad(rows.reshape(len(rows), -1).T[:, None], (reach, reach), mode="replicate")
    return F.conv1d(series, (kernel / kernel.sum())[None, None])[:, 0].T.reshape(rows.shape).contiguous()


def _straightened(points: torch.Tensor) -> torch.Tensor:
    """Turn one frame's landmarks so that the eyes are level and the face looks straight ahead."""
    across = points[RIGHT_EYE] - points[LEFT_EYE]
    across = across / across.norm()
    down = points[CHIN] - points[FOREHEAD]
    down = down - (down @ across) * across
    down = down / down.norm()
    axes = torch.stack([across, down, torch.linalg.cross(across, down)])
    return (points - points[BRIDGE]) @ axes.T
