"""Head pose, and the face without it: landmarks seen from straight ahead, whichever way the head turns."""

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

_SAMPLE = 500  # frames from which a clip's own face is made out
_SHUT_SHARE = 5  # the fifth of the frames in which the mouth is most shut shows it at rest


@dataclass(frozen=True)
class Pose:
    """N similarities from face space to frame pixels: pixel = scale * rotation @ face + shift."""

    scale: torch.Tensor
    rotation: torch.Tensor
    shift: torch.Tensor

    def onto_frame(self, shapes: torch.Tensor) -> torch.Tensor:
        """Face space, N, K, 3 -> frame pixels."""
        return self.scale[:, None, None] * (shapes @ self.rotation.transpose(1, 2)) + self.shift[:, None]

    def off_frame(self, points: torch.Tensor) -> torch.Tensor:
        """Frame pixels, N, K, 3 -> face space."""
        return (points - self.shift[:, None]) @ self.rotation / self.scale[:, None, None]


@dataclass(frozen=True)
class Face:
    """One person's face in face space (x to the image's right, y down, origin between the eyes), K, 3 each.

    `skull`: median over the clip, to find poses with. `rest`: with the mouth as shut as the clip shows it.
    `unit`: the mouth's width at rest, which all mouth movements are measured in.
    """

    skull: torch.Tensor
    rest: torch.Tensor
    unit: torch.Tensor

    @classmethod
    def of(cls, points: torch.Tensor) -> "Face":
        """From the landmarks of the frames that show the face, N, K, 3."""
        sample = points[:: max(1, len(points) // _SAMPLE)]
        skull = _straightened(sample[len(sample) // 2])
        for _ in range(2):
            seen = similarity(skull[SKULL], sample[:, SKULL]).off_frame(sample)
            skull = seen.median(0).values
        gaps = seen[:, LOWER_MIDDLE, 1] - seen[:, UPPER_MIDDLE, 1]
        rest = seen[gaps.argsort()[: max(1, len(seen) // _SHUT_SHARE)]].median(0).values
        return cls(skull, rest, (rest[RIGHT_CORNER] - rest[LEFT_CORNER]).norm())

    def pose(self, points: torch.Tensor) -> Pose:
        """The head's pose in each frame, from landmarks N, K, 3."""
        return similarity(self.skull[SKULL], points[:, SKULL])


def similarity(shape: torch.Tensor, points: torch.Tensor) -> Pose:
    """The N similarities that bring K, 3 nearest to N, K, 3 in least squares (Umeyama 1991, equations 40-42)."""
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
    """N, ... averaged over time with a Gaussian of `sigma` frames; the ends are held."""
    reach = max(1, int(3 * sigma))
    offsets = torch.arange(-reach, reach + 1, device=rows.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    series = F.pad(rows.reshape(len(rows), -1).T[:, None], (reach, reach), mode="replicate")
    return F.conv1d(series, (kernel / kernel.sum())[None, None])[:, 0].T.reshape(rows.shape).contiguous()


def _straightened(points: torch.Tensor) -> torch.Tensor:
    """One frame's landmarks turned so that the eyes are level and the face looks ahead."""
    across = points[RIGHT_EYE] - points[LEFT_EYE]
    across = across / across.norm()
    down = points[CHIN] - points[FOREHEAD]
    down = down - (down @ across) * across
    down = down / down.norm()
    axes = torch.stack([across, down, torch.linalg.cross(across, down)])
    return (points - points[BRIDGE]) @ axes.T
