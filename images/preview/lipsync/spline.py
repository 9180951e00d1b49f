"""Thin-plate splines (Bookstein 1989): the smoothest field that moves some points by given amounts."""

import torch

_STIFFNESS = 2e-3  # lets the field miss the targets a little, because landmarks jitter


def field(targets: torch.Tensor, moves: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Return the field with value `moves` (N, K, 2) at `targets` (N, K, 2), evaluated at `where` (N, G, 2): N, G, 2.

    Coordinates should be of order 1: the radial function's scale and the stiffness assume it.
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
