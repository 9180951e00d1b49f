"""Do the lips follow the sound? Measured on the result itself: its face is tracked again, from the pixels."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lipsync import sound
from lipsync.clip import Clip
from lipsync.engine import PreviewEngine, load
from lipsync.features import RATE
from lipsync.landmarks import openness
from lipsync.scan import scan

FPS = 25
FARTHEST = 8  # frames of lag that are tried either way
QUIET = 4.5  # natural logs below the loudest frame: what is quieter counts as this quiet

Curve = npt.NDArray[np.float64]


def measure_sync(mp4: Path, wav: Path) -> tuple[float, int]:
    """The best correlation of lip opening with the log of the sound's level, and its lag in frames (+ is late lips)."""
    return best_correlation(measure_lip_opening(mp4), measure_loudness(wav))


def best_correlation(opening: Curve, level: Curve) -> tuple[float, int]:
    """The highest correlation over the lags, and that lag."""
    count = min(len(opening), len(level))
    scored = [(correlation(opening[:count], level[:count], lag), lag) for lag in range(-FARTHEST, FARTHEST + 1)]
    return max(scored)


def correlation(opening: Curve, level: Curve, lag: int) -> float:
    late, early = (opening[lag:], level[: len(level) - lag]) if lag >= 0 else (opening[:lag], level[-lag:])
    return float(np.corrcoef(late, early)[0, 1])


def measure_lip_opening(mp4: Path, engine: PreviewEngine | None = None) -> Curve:
    """The gap between the inner lips over the mouth's width, in every frame."""
    clip = Clip(mp4, FPS, 1920)
    with torch.inference_mode():
        seen = scan(clip, 10_000, engine or load(), lambda _: None)
    return openness(seen.points).double().numpy().copy()


def measure_loudness(wav: Path) -> Curve:
    """Log of the level about each video frame, natural logarithm, floor QUIET below the loudest."""
    heard = torch.cat(list(sound.samples(wav, 3600.0))).double().numpy()
    step = RATE // FPS
    frames = round(len(heard) / step)
    spans = [heard[max(0, i * step - step // 2) : (i + 1) * step + step // 2] for i in range(frames)]
    level = np.log([np.sqrt(np.mean(span**2) + 1e-12) for span in spans])
    return np.maximum(level, level.max() - QUIET)
