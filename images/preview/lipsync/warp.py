"""Compute where each pixel of a face comes from when its mouth moves: one field above the lips' line, one below it."""

from dataclasses import dataclass

import torch

from .landmarks import (
    CHEEKS,
    CHIN_SKIN,
    JAW_LINE,
    LOWER_INNER,
    LOWER_OUTER,
    STILL,
    UPPER_INNER,
    UPPER_OUTER,
)
from .lips import Axes, Lips

_NODES = 44  # nodes a side of the fields' grid: a cell is about a twentieth of a mouth
_STIFFNESS = 2e-3  # lets a spline miss its targets a little, because landmarks jitter
_FADE = 0.12  # share of the box over which the movement fades to zero towards its border
_SEAM, _SEAM_GROWS = 1.0, 0.6  # width in pixels of the blend between the fields at the lips; wider beyond the corners
_AROUND = JAW_LINE + CHEEKS + CHIN_SKIN
_UPPER = _AROUND + UPPER_OUTER + UPPER_INNER[1:-1]
_LOWER = _AROUND + LOWER_OUTER + LOWER_INNER[1:-1]


@dataclass(frozen=True)
class Fields:
    """Displacements in shares of half the box (grid_sample's unit), N, 2, nodes, nodes; the grid includes the edges.

    `upper` and `lower` are valid on their side of the lips. `whole` blends them and is valid except near the mouth.
    """

    upper: torch.Tensor
    lower: torch.Tensor
    whole: torch.Tensor


def fields(source: torch.Tensor, target: torch.Tensor, axes: Axes, lips: Lips, side: int) -> Fields:
    """Return the fields that move the landmarks `source` to `target`, N, K, 2 in pixels of a box of `side`.

    `lips` are the wanted lips.
    """
    nodes = _nodes(side, source.device)
    fade = _fade(nodes, side)
    upper, lower = (_field(source, target, row, axes, side) * fade for row in (_UPPER, _LOWER))
    x, y = axes.local(*nodes.expand(len(source), -1, -1, -1).unbind(-1))
    share = below(x, y, lips, axes)[:, None]
    to_half_box = 2 / side
    return Fields(upper * to_half_box, lower * to_half_box, (upper + (lower - upper) * share) * to_half_box)


def below(x: torch.Tensor, y: torch.Tensor, lips: Lips, axes: Axes) -> torch.Tensor:
    """Return the share of the lower field at each place, 0..1. x and y: mouth coordinates, N, H, W."""
    left, right = (corner[:, None, None] for corner in lips.corners)
    outside = torch.maximum(left - x, x - right).clamp(min=0)
    width = _SEAM / axes.unit[:, None, None] + _SEAM_GROWS * outside
    middle = (lips.upper.at(x) + lips.lower.at(x)) / 2
    return ((y - middle) / width + 0.5).clamp(0, 1)


def dense(field: torch.Tensor, size: int) -> torch.Tensor:
    """Return a field's sampling positions for a size x size picture of the box, N, size, size, 2.

    Linear interpolation by two small matrix products is several times as fast as F.interpolate.
    """
    nodes = torch.linspace(-1, 1, _NODES, device=field.device)
    positions = field + torch.stack(torch.meshgrid(nodes, nodes, indexing="xy"))
    places = (torch.arange(size, device=field.device) + 0.5) * ((_NODES - 1) / size)
    between = (1 - (places[:, None] - torch.arange(_NODES, device=field.device)).abs()).clamp(min=0)
    return (between @ positions @ between.T).permute(0, 2, 3, 1)


def _field(source: torch.Tensor, target: torch.Tensor, moving: list[int], axes: Axes, side: int) -> torch.Tensor:
    """Return displacements in pixels, N, 2, nodes, nodes, from a place in the result to where it was filmed."""
    border = _border(side, source.device).expand(len(source), -1, -1)
    there = torch.cat([target[:, moving], source[:, STILL], border], 1)
    here = torch.cat([source[:, moving], source[:, STILL], border], 1)

    def scaled(points: torch.Tensor) -> torch.Tensor:
        return (points - axes.middle[:, None]) / axes.unit[:, None, None]

    where = scaled(_nodes(side, source.device).reshape(1, -1, 2).expand(len(source), -1, -1))
    moves = (here - there) / axes.unit[:, None, None]
    found = spline_field(scaled(there), moves, where) * axes.unit[:, None, None]
    return found.reshape(len(source), _NODES, _NODES, 2).permute(0, 3, 1, 2)


def _nodes(side: int, device: torch.device) -> torch.Tensor:
    axis = torch.linspace(0, side, _NODES, device=device)
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)


def _fade(nodes: torch.Tensor, side: int) -> torch.Tensor:
    """Return a factor that is 1 inside, 0 on the border and smooth in between."""
    inward = torch.minimum(nodes, side - nodes).amin(-1) / (_FADE * side)
    ramp = inward.clamp(0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def _border(side: int, device: torch.device) -> torch.Tensor:
    """Return sixteen points on the border of the box, which must not move."""
    steps = torch.arange(4, device=device) * (side / 4)
    low, high = torch.zeros(4, device=device), torch.full((4,), float(side), device=device)
    edges = ((steps, low), (high, steps), (side - steps, high), (low, side - steps))
    return torch.cat([torch.stack(edge, -1) for edge in edges])


def spline_field(targets: torch.Tensor, moves: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Return the smoothest field with value `moves` (N, K, 2) at `targets` (N, K, 2), at `where` (N, G, 2): N, G, 2.

    It is a thin-plate spline (Bookstein 1989). Coordinates should be of order 1: the radial function's scale and the
    stiffness assume it.
    """
    count, points, _ = targets.shape
    affine = _affine(targets)
    system = torch.zeros(count, points + 3, points + 3, device=targets.device)
    system[:, :points, :points] = _bend(targets, targets) + _STIFFNESS * torch.eye(points, device=targets.device)
    system[:, :points, points:], system[:, points:, :points] = affine, affine.transpose(1, 2)
    wanted = torch.cat([moves, moves.new_zeros(count, 3, 2)], 1)
    weights = torch.linalg.solve(system, wanted)
    return _bend(where, targets) @ weights[:, :points] + _affine(where) @ weights[:, points:]


def _bend(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return r^2 log r^2 between all points of a (N, A, 2) and b (N, B, 2).

    r^2 is computed as a^2 - 2ab + b^2, which is three times as fast as subtracting first.
    """
    lengths = a.square().sum(-1)[:, :, None] + b.square().sum(-1)[:, None]
    squares = torch.baddbmm(lengths, a, b.transpose(1, 2), alpha=-2).clamp_(min=1e-9)
    return squares.log().mul_(squares)


def _affine(points: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.ones_like(points[..., :1]), points], -1)
