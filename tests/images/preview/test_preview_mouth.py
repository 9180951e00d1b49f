"""Drawing: what is not said changes nothing, what is said opens the mouth, and only the box about it is touched."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lipsync.clip import Clip
from lipsync.colour import to_rgb
from lipsync.compose import Composer, Layout
from lipsync.engine import PreviewEngine
from lipsync.landmarks import LOWER_INNER, UPPER_INNER, openness
from lipsync.mouth import closed, speaking
from lipsync.picture import Bytes
from lipsync.pose import similarity
from lipsync.render import Person
from lipsync.scan import Scan, scan
from lipsync.tracker import tracks
from lipsync.warp import spline_field

SILENT = torch.zeros(1, 5)
AH = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]])
OO = torch.tensor([[0.3, 0.0, 1.0, 0.0, 0.0]])
CALM = 20  # the sample clip's first frames: a neutral face, mouth shut


class Sink:
    """Keeps the pictures in place of writing them."""

    def __init__(self) -> None:
        self.pictures: list[tuple[Bytes, Bytes]] = []

    def add(self, luma: Bytes, chroma: Bytes) -> None:
        self.pictures.append((luma, chroma))


@pytest.fixture(scope="module")
def clip(samples: Path) -> Clip:
    return Clip(samples / "face.mp4", 25, 1920)


@pytest.fixture(scope="module")
def calm(clip: Clip, engine: PreviewEngine) -> Scan:
    return scan(clip, CALM, engine, lambda _: None)


def drawn(clip: Clip, seen: Scan, engine: PreviewEngine, curves: torch.Tensor, place: int = 3) -> tuple[Bytes, Bytes]:
    composer = Composer(seen, Person(seen.face, seen.teeth, 1.0), Layout.of(seen, clip.shape), engine)
    sink = Sink()
    composer.compose(iter([(place, next(clip.pictures(place, place + 1)))]), curves, sink, lambda _: None)
    return sink.pictures[0]


def luma(clip: Clip, place: int = 3) -> np.ndarray:
    return next(clip.pictures(place, place + 1)).planes()[0].astype(int)


def test_saying_nothing_leaves_a_shut_mouth_as_it_was(clip: Clip, calm: Scan, engine: PreviewEngine) -> None:
    after, _ = drawn(clip, calm, engine, SILENT)
    change = np.abs(after.astype(int) - luma(clip))
    assert change.mean() < 0.3
    assert np.quantile(change, 0.999) < 16


def test_saying_ah_opens_the_mouth_and_leaves_the_rest_alone(clip: Clip, calm: Scan, engine: PreviewEngine) -> None:
    after, _ = drawn(clip, calm, engine, AH)
    layout = Layout.of(calm, clip.shape)
    left, top = layout.corners[3]
    outside = np.ones(after.shape, bool)
    outside[top : top + layout.box, left : left + layout.box] = False
    change = np.abs(after.astype(int) - luma(clip))
    assert change[outside].max() == 0
    assert change[~outside].mean() > 1
    # the box's border, where a seam would show
    border = np.zeros(after.shape, bool)
    border[top : top + layout.box, left : left + layout.box] = True
    border[top + 2 : top + layout.box - 2, left + 2 : left + layout.box - 2] = False
    assert np.quantile(change[border], 0.99) <= 4


def test_the_tracker_sees_the_mouth_that_was_drawn(clip: Clip, calm: Scan, engine: PreviewEngine) -> None:
    """It sees less than was drawn: the mesh net leans to common faces."""
    shut, open_ = (rgb(*drawn(clip, calm, engine, curves)) for curves in (SILENT, AH))
    (track,) = tracks(engine.faces, engine.lanes, [torch.cat([shut, open_])])
    assert track.found.all()
    seen = openness(track.points)
    assert seen[0] < 0.03
    assert seen[1] > seen[0] + 0.03


def rgb(luma: Bytes, chroma: Bytes) -> torch.Tensor:
    grown = torch.from_numpy(chroma).float().repeat_interleave(2, 1).repeat_interleave(2, 2)
    yuv = torch.cat([torch.from_numpy(luma)[None].float(), grown]) / 255
    return to_rgb(yuv.flatten(1).T).T.reshape(1, 3, *luma.shape)


def test_rounding_narrows_the_lips(calm: Scan) -> None:
    shapes = calm.face.rest[None]
    wide, narrow = (speaking(calm.face, shapes, curves, 1.0)[0, UPPER_INNER, 0] for curves in (AH, OO))
    assert (narrow.max() - narrow.min()) < 0.85 * (wide.max() - wide.min())


def test_an_open_mouth_is_shut_before_it_speaks(calm: Scan) -> None:
    opened = speaking(calm.face, calm.face.rest[None], AH, 1.0)
    gap = closed(calm.face, opened)[0]
    assert (gap[LOWER_INNER, 1] - gap[UPPER_INNER, 1]).abs().max() < 0.03 * calm.face.unit


def test_pose_is_found_whatever_the_head_does() -> None:
    dice = torch.Generator().manual_seed(1)
    shape = torch.randn(30, 3, generator=dice)
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, -0.3, 0.2], [0.3, 0.0, -0.5], [-0.2, 0.5, 0.0]]))
    points = 2.5 * shape @ turn.T + torch.tensor([10.0, -4.0, 3.0])
    pose = similarity(shape, points[None])
    assert torch.allclose(pose.rotation[0], turn, atol=1e-5)
    assert torch.allclose(pose.off_frame(points[None])[0], shape, atol=1e-4)
    assert torch.allclose(pose.onto_frame(shape[None])[0], points, atol=1e-4)


def test_spline_moves_its_points_as_given() -> None:
    dice = torch.Generator().manual_seed(2)
    points = torch.rand(1, 40, 2, generator=dice) * 4
    moves = 0.1 * torch.sin(points.flip(-1))
    assert (spline_field(points, moves, points) - moves).abs().max() < 0.02
