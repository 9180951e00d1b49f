"""The mouth net's view of speech: log-mel bands at 100 Hz, and the level of the recording at the same times."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

RATE = 16_000
"""Samples per second of every recording behind `sound`."""
HOP = 160
WINDOW = 400
FFT = 512
BANDS = 40
FRAMES_PER_S = RATE // HOP
_LOW_HZ, _HIGH_HZ = 60.0, 7600.0
_SPEECH_DBFS = -55.0  # quieter frames do not count for the speaker's loudness
_SILENT, _LOUDEST = -4.0, 3.0


@dataclass(frozen=True)
class Features:
    """`mel`: T, BANDS natural-log power; `dbfs`: T, level in dB full scale. Frame i is centred on i * 10 ms."""

    mel: torch.Tensor
    dbfs: torch.Tensor
    samples: int

    @property
    def seconds(self) -> float:
        return self.samples / RATE

    def normalised(self) -> torch.Tensor:
        """Return the bands relative to the speaker's louder frames, so that gain does not matter. T, BANDS in -4..3."""
        energy = self.mel.mean(1)
        heard = energy[self.dbfs > _SPEECH_DBFS]
        if not len(heard):
            return torch.full_like(self.mel, _SILENT)
        louder = heard.sort().values[int(len(heard) * 0.6) :]
        return ((self.mel - louder.mean()) / 3.0).clamp(_SILENT, _LOUDEST)


def extract(blocks: Iterable[torch.Tensor], device: torch.device) -> Features:
    """Return the features of a recording, given as blocks of samples (float, -1..1).

    Only the features are kept in memory: 16 kB for each second of sound.
    """
    bank, window = mel_bank().to(device), _window(device)
    margin = torch.zeros(FFT // 2, device=device)  # padding: centres the first frame on sample 0, the last on the last
    rest, samples = margin, -len(margin)
    mels, levels = [torch.zeros(0, BANDS, device=device)], [torch.zeros(0, device=device)]
    for block in itertools.chain(blocks, [margin]):
        samples += len(block)
        rest = torch.cat([rest, block.to(device)])
        if len(rest) < FFT:
            continue
        frames = rest.unfold(0, FFT, HOP) * window
        rest = rest[len(frames) * HOP :]
        mels.append(torch.log(torch.fft.rfft(frames).abs().square() @ bank.T + 1e-8))
        levels.append(10 * torch.log10(frames.square().sum(1) / window.square().sum() + 1e-12))
    return Features(torch.cat(mels), torch.cat(levels), samples)


def mel_bank() -> torch.Tensor:
    """Return triangular filters, BANDS x FFT/2+1, evenly spaced on O'Shaughnessy's mel scale, 2595 log10(1 + f/700)."""
    low, high = (2595 * math.log10(1 + hz / 700) for hz in (_LOW_HZ, _HIGH_HZ))
    edges = 700 * (10 ** (torch.linspace(low, high, BANDS + 2, dtype=torch.float64) / 2595) - 1)
    bins = torch.arange(FFT // 2 + 1, dtype=torch.float64) * RATE / FFT
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0).float()


def _window(device: torch.device) -> torch.Tensor:
    edge = (FFT - WINDOW) // 2
    return F.pad(torch.hann_window(WINDOW, device=device), (edge, edge))
