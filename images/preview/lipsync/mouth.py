"""Move a mouth by the five curves: from a frame's own landmarks to those of the same face saying something else.

All points are in face space. Amounts are shares of the mouth's width at rest (`Face.unit`). They were chosen by eye on
real clips.
"""

from dataclasses import dataclass

import torch

from .landmarks import (
    CHEEKS,
    CHIN,
    CHIN_SKIN,
    JAW_LINE,
    LEFT_CORNER,
    LOWER_INNER,
    LOWER_OUTER,
    NOSE_BASE,
    RIGHT_CORNER,
    UPPER_INNER,
    UPPER_OUTER,
)
from .pose import Face

_TO_REST = 0.35  # how far a frame's own mouth moves towards the clip's mouth at rest; 1 would remove its smiles
_CHIN_SHARE = 0.8  # how far the chin rises when the mouth is closed, as a share of the lower lip's way
_OPEN, _OPEN_ROUND = 0.30, 0.05
_RAISED, _DROPPED = 0.15, 0.85  # shares of the opening: the upper lip rises, the lower lip drops
_JAW = 0.20
_WIDER, _NARROWER, _NARROWER_OPEN = 0.10, 0.26, 0.05
_POUT = 0.10  # how far rounded lips move forward
_PRESS, _TUCK = 0.03, 0.05
_CORNER_DROP = 0.22


@dataclass(frozen=True)
class _Spoken:
    """The curves as columns N, 1, and the gap between the lips and the width of the mouth that follow from them."""

    jaw: torch.Tensor
    wide: torch.Tensor
    round: torch.Tensor
    shut: torch.Tensor
    tuck: torch.Tensor

    @property
    def gap(self) -> torch.Tensor:
        return (_OPEN * self.jaw + _OPEN_ROUND * self.round) * (1 - self.shut) * (1 - 0.75 * self.tuck)

    @property
    def stretch(self) -> torch.Tensor:
        return 1 + _WIDER * self.wide - _NARROWER * self.round - _NARROWER_OPEN * self.jaw


def speaking(face: Face, shapes: torch.Tensor, curves: torch.Tensor, gain: float) -> torch.Tensor:
    """Return the shapes (N, K, 3) with mouths that follow the curves (N, 5) only. `gain` scales the opening."""
    spoken = _Spoken(*curves.T[..., None].clamp(0, 1))
    still = closed(face, shapes)
    moved = still.clone()
    _move_lips(face, still, moved, spoken, gain)
    _move_jaw(face, still, moved, spoken, gain)
    return moved


def closed(face: Face, shapes: torch.Tensor) -> torch.Tensor:
    """Return the shapes with their mouths shut by lower lip and jaw. This removes what the person said when filmed."""
    still = shapes.clone()
    gaps = shapes[:, LOWER_INNER] - shapes[:, UPPER_INNER]
    still[:, LOWER_INNER] -= gaps
    still[:, LOWER_OUTER[1:-1]] -= gaps[:, 1:-1]
    nose, chin = shapes[:, NOSE_BASE, 1, None], shapes[:, CHIN, 1, None]
    middle = gaps[:, len(LOWER_INNER) // 2, 1, None]
    for row in (CHIN_SKIN, JAW_LINE):
        lowered = ((shapes[:, row, 1] - nose) / (chin - nose)).clamp(0, 1)
        still[:, row, 1] -= lowered * _CHIN_SHARE * middle
    return still + _TO_REST * (face.rest - still)


def _move_lips(face: Face, still: torch.Tensor, moved: torch.Tensor, spoken: _Spoken, gain: float) -> None:
    centre = (face.rest[LEFT_CORNER, 0] + face.rest[RIGHT_CORNER, 0]) / 2
    half = (face.rest[RIGHT_CORNER, 0] - face.rest[LEFT_CORNER, 0]) / 2
    gap, unit = spoken.gap * gain, face.unit
    line = (still[:, UPPER_INNER] + still[:, LOWER_INNER]) / 2
    pressed = _PRESS * spoken.shut
    lips = (
        # row of landmarks, its start, how far its middle moves, how much less it moves towards the corners
        (UPPER_OUTER, still[:, UPPER_OUTER], -0.87 * _RAISED * gap + 0.8 * pressed, 0.8),
        (UPPER_INNER, line, -_RAISED * gap, 1.0),
        (LOWER_INNER, line, _DROPPED * gap - _PRESS * spoken.tuck, 1.0),
        (LOWER_OUTER, still[:, LOWER_OUTER], 0.97 * _DROPPED * gap - pressed - _TUCK * spoken.tuck, 0.8),
    )
    for row, base, middle, fall in lips:
        across = ((base[..., 0] - centre) / half).clamp(-1, 1).abs()
        bow = 1 - fall * across**2.4
        moved[:, row, 0] = centre + (base[..., 0] - centre) * spoken.stretch
        moved[:, row, 1] = base[..., 1] + unit * (middle * bow + _CORNER_DROP * gap * across**4)
        moved[:, row, 2] = base[..., 2] - unit * _POUT * spoken.round


def _move_jaw(face: Face, still: torch.Tensor, moved: torch.Tensor, spoken: _Spoken, gain: float) -> None:
    drop = _JAW * gain * face.unit * spoken.jaw * (1 - 0.5 * spoken.shut)
    nose, chin = face.rest[NOSE_BASE, 1], face.rest[CHIN, 1]
    for row, share in ((CHIN_SKIN, 1.0), (JAW_LINE, 1.0), (CHEEKS, 0.35)):
        lowered = ((face.rest[row, 1] - nose) / (chin - nose)).clamp(0, 1) ** 1.2
        moved[:, row, 1] = still[:, row, 1] + share * lowered * drop
    centre = (face.rest[LEFT_CORNER, 0] + face.rest[RIGHT_CORNER, 0]) / 2
    moved[:, CHEEKS, 0] += 0.35 * (still[:, CHEEKS, 0] - centre) * (spoken.stretch - 1)
