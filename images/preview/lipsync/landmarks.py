"""Name the face points that are used of MediaPipe's 468. Their numbering is that of MediaPipe's canonical face model.

Only these points of a frame are kept (1.5 kB instead of 5.6), so that the track of a long video fits in memory.
Every name holds indices among the kept points. Lip rows run from the image-left corner to the right one.
"""

import torch

_UPPER_OUTER = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291)
_LOWER_OUTER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291)
_UPPER_INNER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
_LOWER_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
_CHIN_SKIN = (18, 83, 313, 200, 199, 201, 421, 208, 428)
_JAW_LINE = (172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397)
_CHEEKS = (205, 425, 207, 427, 216, 436, 212, 432, 57, 287, 187, 411)
_STILL = (2, 98, 327, 165, 391, 4, 50, 280, 58, 288, 132, 361, 93, 323, 133, 362, 168)
_SKULL = (10, 151, 9, 8, 168, 6, 197, 195, 5, 4, 33, 133, 362, 263, 130, 359, 234, 454, 127, 356, 93, 323)
_BROW = (67, 297, 109, 338, 21, 251, 54, 284)

_ROWS = (_UPPER_OUTER, _LOWER_OUTER, _UPPER_INNER, _LOWER_INNER, _CHIN_SKIN, _JAW_LINE, _CHEEKS, _STILL, _SKULL, _BROW)
MESH = tuple(sorted({point for row in _ROWS for point in row}))
"""The kept points by their MediaPipe number."""


def _kept(points: tuple[int, ...]) -> list[int]:
    return [MESH.index(point) for point in points]


UPPER_OUTER, LOWER_OUTER = _kept(_UPPER_OUTER), _kept(_LOWER_OUTER)
UPPER_INNER, LOWER_INNER = _kept(_UPPER_INNER), _kept(_LOWER_INNER)
CHIN_SKIN, JAW_LINE, CHEEKS = _kept(_CHIN_SKIN), _kept(_JAW_LINE), _kept(_CHEEKS)
STILL = _kept(_STILL)
"""Points about the mouth that speech does not move."""
SKULL = _kept(_SKULL + _BROW)
"""Points that move with the head alone: they give its pose."""
(LEFT_EYE, RIGHT_EYE, BRIDGE, FOREHEAD, CHIN, NOSE_BASE) = _kept((33, 263, 168, 10, 152, 2))
(LEFT_CORNER, RIGHT_CORNER, UPPER_MIDDLE, LOWER_MIDDLE) = _kept((61, 291, 13, 14))
(LEFT_SIDE, RIGHT_SIDE, BELOW_LIP) = _kept((234, 454, 17))
LIP_SKIN = _kept((0, 17, 37, 267, 84, 314))
FACE_SKIN = _kept((205, 425, 50, 280))


def openness(points: torch.Tensor) -> torch.Tensor:
    """Return the gap between the inner lips divided by the mouth's width, N: 0 is shut, about 0.5 is wide open."""
    gap = (points[:, LOWER_MIDDLE, :2] - points[:, UPPER_MIDDLE, :2]).norm(dim=-1)
    return gap / (points[:, RIGHT_CORNER, :2] - points[:, LEFT_CORNER, :2]).norm(dim=-1).clamp(min=1e-6)
