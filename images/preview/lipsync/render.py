"""Draw the wanted mouth into a batch of faces: warp the box around the face, then redraw the lips and the inside."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from . import colour, interior, warp
from .landmarks import FACE_SKIN, LIP_SKIN, UPPER_MIDDLE
from .lips import Axes, Lips
from .mouth import speaking
from .pose import Face, Pose
from .teeth import Teeth, skull_axes

_FINEST = 160  # resolution limit, in pixels a side, for painting the mouth's inside: bounds the cost of a large face


@dataclass(frozen=True)
class Boxes:
    """Square sections of N frames, 0..1: `luma` N, 1, side, side; `chroma` N, 2, side/2, side/2."""

    luma: torch.Tensor
    chroma: torch.Tensor

    @property
    def side(self) -> int:
        return int(self.luma.shape[-1])

    def at(self, where: torch.Tensor) -> torch.Tensor:
        """Return Y'CbCr, N, 3, H, W, at the positions N, H, W, 2 (grid_sample's coordinates)."""
        return torch.cat([_sampled(self.luma, where), _sampled(self.chroma, where)], 1)


@dataclass(frozen=True)
class Person:
    """The person in a clip. `teeth`: None if the clip does not show them. `gain` scales the opening of the mouth."""

    face: Face
    teeth: Teeth | None
    gain: float


@dataclass(frozen=True)
class RenderBatch:
    """One batch: boxes, landmarks N, K, 3 in box pixels, curves N, 5, and the strength of the change, N in 0..1."""

    boxes: Boxes
    points: torch.Tensor
    curves: torch.Tensor
    strength: torch.Tensor


def render(scene: RenderBatch, person: Person, window: int) -> Boxes:
    """Return the boxes with mouths that follow the curves. `window`: side of the square around the mouth, redrawn."""
    pose = person.face.pose(scene.points)
    shapes = pose.off_frame(scene.points)
    wanted = speaking(person.face, shapes, scene.curves, person.gain)
    moves = (pose.onto_frame(wanted) - pose.onto_frame(shapes))[..., :2]
    source = scene.points[..., :2]
    target = source + moves * scene.strength[:, None, None]
    axes = Axes.of(source, pose.scale * person.face.unit)
    lips = Lips.of(target, axes)
    fields = warp.fields(source, target, axes, lips, scene.boxes.side)
    moved = Boxes(
        _sampled(scene.boxes.luma, warp.dense(fields.whole, scene.boxes.side)),
        _sampled(scene.boxes.chroma, warp.dense(fields.whole, scene.boxes.side // 2)),
    )
    _redo_mouth(moved, scene, person, _Mouth(pose, axes, lips, fields), window)
    return moved


@dataclass(frozen=True)
class _Mouth:
    pose: Pose
    axes: Axes
    lips: Lips
    fields: warp.Fields


def _redo_mouth(moved: Boxes, scene: RenderBatch, person: Person, mouth: _Mouth, window: int) -> None:
    """Draw the window around the mouth into the moved boxes: skin above and below the lips' line, and the inside."""
    side = scene.boxes.side
    corners = ((mouth.axes.middle - window / 2) / 2).round().clamp(0, (side - window) // 2).long() * 2
    pixels = _pixels(corners, window, 1)
    place = torch.stack(pixels, -1) * (2 / side) - 1
    x, y = mouth.axes.local(*pixels)
    above, under = (_displaced(scene.boxes, field, place) for field in (mouth.fields.upper, mouth.fields.lower))
    skin = above + (under - above) * warp.below(x, y, mouth.lips, mouth.axes)[:, None]
    coarse = _pixels(corners, window, -(-window // _FINEST))
    inside = F.interpolate(_inside(scene, person, mouth, coarse), (window, window), mode="bilinear")
    mask = _opening(person.face, mouth, x, y).mask() * scene.strength[:, None, None]
    drawn = skin + (inside - skin) * mask[:, None]
    small = F.avg_pool2d(drawn[:, 1:], 2)
    for i, (left, top) in enumerate(corners.tolist()):
        moved.luma[i, :, top : top + window, left : left + window] = drawn[i, :1]
        moved.chroma[i, :, top // 2 : (top + window) // 2, left // 2 : (left + window) // 2] = small[i]


def _pixels(corners: torch.Tensor, window: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x and y of the window's pixels (of blocks of step x step pixels: their middles), N, size, size each."""
    size = window // step
    axis = (torch.arange(size, device=corners.device) + 0.5) * (window / size)
    across = (corners[:, 0, None] + axis)[:, None, :].expand(-1, size, -1)
    return across, (corners[:, 1, None] + axis)[:, :, None].expand(-1, -1, size)


def _inside(
    scene: RenderBatch, person: Person, mouth: _Mouth, pixels: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Return the colours of the mouth's inside at all `pixels`, even where the lips will cover it. N, 3, H, W."""
    opening = _opening(person.face, mouth, *mouth.axes.local(*pixels))
    lip, flesh = (colour.to_rgb(_colour(scene, row)) for row in (LIP_SKIN, FACE_SKIN))
    inside = interior.painted(opening, lip, flesh, with_teeth=person.teeth is None)
    if person.teeth is not None:
        own, sure = person.teeth.shown(*skull_axes(person.face, mouth.pose).local(*pixels))
        dimmed = torch.cat([own[:, :1] * interior.shadow(opening)[:, None], own[:, 1:]], 1)
        inside = inside + (dimmed - inside) * sure
    return inside


def _opening(face: Face, mouth: _Mouth, x: torch.Tensor, y: torch.Tensor) -> interior.Opening:
    """Return the opening between the lips, for pixels at x and y in mouth coordinates."""
    roots = mouth.pose.onto_frame(face.rest[UPPER_MIDDLE].expand(len(x), 1, 3))[:, 0, :2]
    _, teeth = mouth.axes.local(*roots[:, None, None].unbind(-1))
    left, right = (corner[:, None, None] for corner in mouth.lips.corners)
    upper, lower = mouth.lips.upper.at(x), mouth.lips.lower.at(x)
    return interior.Opening(x, y, upper, lower, left, right, teeth, mouth.axes.unit)


def _colour(scene: RenderBatch, row: list[int]) -> torch.Tensor:
    """Return the mean colour at a row of landmarks, Y'CbCr, N, 3."""
    spots = scene.points[:, None, row, :2] * (2 / scene.boxes.side) - 1
    return scene.boxes.at(spots).mean((2, 3))


def _displaced(boxes: Boxes, field: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    moves = F.grid_sample(field, place, align_corners=True).permute(0, 2, 3, 1)
    return boxes.at(place + moves)


def _sampled(planes: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    return F.grid_sample(planes, where, align_corners=False, padding_mode="border")
