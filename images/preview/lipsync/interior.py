"""Paint the inside of an open mouth: the dark, the tongue and, if the clip does not show the person's own, the teeth.

Lengths are in mouth widths. The amounts were chosen by eye.
"""

from dataclasses import dataclass

import torch

from .colour import to_yuv

_EDGE, _EDGE_PIXELS = 0.012, 0.8  # softness of the lips' edge: this share of the mouth, but at least this many pixels
_TOOTH = 0.105
_TEETH_LENGTH = 0.075
_LIP_SHADOW = 0.06
_SCALLOP = 0.01
_DEEP = 0.12  # a mouth that is less open than this shows no black, because light falls in


@dataclass(frozen=True)
class Opening:
    """The window's pixels in mouth coordinates: x, y, and the lips' edges above and below each of them. N, H, W each.

    `left` and `right`: the corners' x, `teeth`: y of the upper teeth's roots; N, 1, 1. `unit`: pixels to a mouth width.
    """

    x: torch.Tensor
    y: torch.Tensor
    upper: torch.Tensor
    lower: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    teeth: torch.Tensor
    unit: torch.Tensor

    @property
    def gap(self) -> torch.Tensor:
        return self.lower - self.upper

    @property
    def edge(self) -> torch.Tensor:
        return (_EDGE * self.unit).clamp(min=_EDGE_PIXELS)[:, None, None] / self.unit[:, None, None]

    def mask(self) -> torch.Tensor:
        """Return the share of each pixel that lies between the lips, 0..1."""
        between = _ramp((self.y - self.upper) / self.edge) * _ramp((self.lower - self.y) / self.edge)
        ends = _ramp((self.x - self.left) / (2 * self.edge)) * _ramp((self.right - self.x) / (2 * self.edge))
        return between * ends


def painted(opening: Opening, lip: torch.Tensor, skin: torch.Tensor, with_teeth: bool) -> torch.Tensor:
    """Paint dark, tongue and upper teeth. Return Y'CbCr, N, 3, H, W.

    The colours derive from the person's `lip` and `skin`, each R'G'B', N, 3.
    """
    across = (2 * opening.x).clamp(-1, 1)
    depth = _ramp((opening.y - opening.upper) / opening.gap.clamp(min=0.02))
    shallow = 1 - _ramp(opening.gap / _DEEP)
    dark = _tinted(lip, (0.32, 0.19, 0.19)) * (0.55 + 0.45 * depth + 0.7 * shallow)[:, None]
    tongue = _tinted(lip, (0.74, 0.46, 0.46)) * (0.75 + 0.25 * depth)[:, None]
    raised = _ramp((opening.y - opening.lower + 0.45 * opening.gap) / (0.35 * opening.gap).clamp(min=0.02))
    shows = raised * (1 - across.square()) * _ramp((opening.gap - 0.08) / 0.12) * 0.8
    inside = dark + (tongue - dark) * shows[:, None]
    if with_teeth:
        inside = inside + (_teeth(opening, skin, across) - inside) * _bite(opening, across)[:, None]
    return to_yuv(inside)


def shadow(opening: Opening) -> torch.Tensor:
    """Return the upper lip's shadow on the inside of the mouth, as a factor of the brightness, N, H, W."""
    return 0.6 + 0.4 * _ramp((opening.y - opening.upper) / _LIP_SHADOW)


def _teeth(opening: Opening, skin: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    light = skin.mean(1, keepdim=True)
    ivory = (light * skin.new_tensor([1.22, 1.09, 0.95])).clamp(0, 0.92)[..., None, None]
    round_off = 0.70 + 0.30 * (1 - across.square())
    return ivory * ((1 - 0.12 * _cracks(opening, 0.07)) * round_off * (0.5 + 0.5 * shadow(opening)))[:, None]


def _bite(opening: Opening, across: torch.Tensor) -> torch.Tensor:
    """Return a mask of the upper teeth. They end at a scalloped line fixed to the skull, higher towards the sides."""
    end = opening.teeth + _TEETH_LENGTH * (1 - 0.5 * across.square()) - _SCALLOP * _cracks(opening, 0.2)
    above = _ramp((end - opening.y) / (2 * opening.edge) + 0.5)
    return above * (1 - across.abs() ** 3) * _ramp((opening.gap - 0.03) / 0.06) * 0.9


def _cracks(opening: Opening, width: float) -> torch.Tensor:
    """Return 1 between two teeth, falling to 0 within `width` of a tooth. One gap is in the middle of the mouth."""
    phase = opening.x / _TOOTH
    return torch.exp(-(((phase - phase.round()) / width) ** 2))


def _tinted(colour: torch.Tensor, factors: tuple[float, float, float]) -> torch.Tensor:
    return (colour * colour.new_tensor(factors))[..., None, None]


def _ramp(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(0, 1)
