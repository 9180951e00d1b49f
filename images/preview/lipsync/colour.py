"""Convert between the frames' Y'CbCr and R'G'B': both 0..1 (byte / 255), limited range, ITU-R BT.709.

A clip in another matrix keeps its colours: every painted colour is mixed from the frame's own colours, and converted
there and back with the same matrix.
"""

import torch

_KR, _KB = 0.2126, 0.0722
_KG = 1 - _KR - _KB
_FLOOR, _LUMA, _CHROMA = 16 / 255, 219 / 255, 224 / 255
_FROM_RGB = torch.tensor(
    [
        [_KR, _KG, _KB],
        [-_KR / (2 * (1 - _KB)), -_KG / (2 * (1 - _KB)), 0.5],
        [0.5, -_KG / (2 * (1 - _KR)), -_KB / (2 * (1 - _KR))],
    ]
)


def to_rgb(yuv: torch.Tensor) -> torch.Tensor:
    """Convert N colours from Y'CbCr to R'G'B': N, 3 -> N, 3."""
    centred = (yuv - yuv.new_tensor([_FLOOR, 0.5, 0.5])) / yuv.new_tensor([_LUMA, _CHROMA, _CHROMA])
    return (centred @ torch.linalg.inv(_FROM_RGB).T.to(yuv)).clamp(0, 1)


def to_yuv(rgb: torch.Tensor) -> torch.Tensor:
    """Convert pictures from R'G'B' to Y'CbCr: N, 3, H, W -> N, 3, H, W."""
    mixed = torch.einsum("ij,njhw->nihw", _FROM_RGB.to(rgb), rgb)
    scale, offset = rgb.new_tensor([_LUMA, _CHROMA, _CHROMA]), rgb.new_tensor([_FLOOR, 0.5, 0.5])
    return mixed * scale[:, None, None] + offset[:, None, None]
