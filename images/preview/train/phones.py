"""Map each of flite's phones to a mouth shape, and a timed list of phones to curves."""

import torch
import torch.nn.functional as F

FRAMES_PER_S = 100
# phone: jaw, wide, round, shut, tuck. Jaw heights follow vowel height (open vowels 1, sibilants nearly shut),
# wide and round follow the spread and rounded vowels of English. The values are estimates; no speaker was measured.
_SHAPES: dict[tuple[str, ...], tuple[float, float, float, float, float]] = {
    ("pau",): (0, 0, 0, 0, 0),
    ("aa",): (0.9, 0.1, 0, 0, 0),
    ("ae",): (0.85, 0.4, 0, 0, 0),
    ("ay",): (0.8, 0.3, 0, 0, 0),
    ("ao", "aw"): (0.75, 0, 0.4, 0, 0),
    ("ah", "eh"): (0.6, 0.25, 0, 0, 0),
    ("oy",): (0.55, 0, 0.7, 0, 0),
    ("ow",): (0.5, 0, 0.75, 0, 0),
    ("ey",): (0.5, 0.5, 0, 0, 0),
    ("ax", "hh"): (0.4, 0.1, 0, 0, 0),
    ("ih",): (0.38, 0.4, 0, 0, 0),
    ("l",): (0.38, 0.2, 0, 0, 0),
    ("er", "axr"): (0.38, 0, 0.35, 0, 0),
    ("uh",): (0.38, 0, 0.5, 0, 0),
    ("g", "k", "ng"): (0.32, 0.15, 0, 0, 0),
    ("r",): (0.3, 0, 0.45, 0, 0),
    ("dh", "th"): (0.28, 0.2, 0, 0, 0),
    ("iy",): (0.25, 0.85, 0, 0, 0),
    ("y",): (0.25, 0.55, 0, 0, 0),
    ("d", "n", "t"): (0.24, 0.2, 0, 0, 0),
    ("uw", "w"): (0.2, 0, 0.95, 0, 0),
    ("ch", "jh", "sh", "zh"): (0.2, 0, 0.55, 0, 0),
    ("s", "z"): (0.14, 0.4, 0, 0, 0),
    ("f", "v"): (0.12, 0.1, 0, 0, 1),
    ("b", "m", "p"): (0.02, 0, 0.1, 1, 0),
}
_SHAPE = {phone: shape for phones, shape in _SHAPES.items() for phone in phones}
_SLOW_S, _QUICK_S = 0.035, 0.020  # how far a shape spreads into its neighbours: vowels farther than closures
_CLOSURE_GAIN = 1.15  # a closure is short; without the gain, spreading would keep the lips from meeting


def curves(phones: list[tuple[str, float]], frames: int, stretch: float = 1.0) -> torch.Tensor:
    """Return the curves, frames, 5 at 100 Hz, of (phone, end in seconds) pairs. `stretch`: factor of the duration."""
    shapes = torch.tensor([_SHAPE[phone] for phone, _ in phones])
    ends = torch.tensor([end * stretch for _, end in phones])
    now = torch.arange(frames) / FRAMES_PER_S
    speaking = torch.searchsorted(ends, now, right=True).clamp(max=len(ends) - 1)
    steps = shapes[speaking]
    closures = (_spread(steps[:, 3:], _QUICK_S) * _CLOSURE_GAIN).clamp(0, 1)
    return torch.cat([_spread(steps[:, :3], _SLOW_S), closures], 1)


def _spread(steps: torch.Tensor, sigma_s: float) -> torch.Tensor:
    reach = torch.arange(-12, 13) / FRAMES_PER_S
    kernel = torch.exp(-0.5 * (reach / sigma_s) ** 2)
    padded = F.pad(steps.T[:, None], (12, 12), mode="replicate")
    return F.conv1d(padded, (kernel / kernel.sum())[None, None])[:, 0].T
