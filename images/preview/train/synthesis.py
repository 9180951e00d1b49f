"""Synthesise speech with the times of its phones: sentences by flite, and the effects of a microphone or a room."""

import random
import subprocess
import wave
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from lipsync.features import RATE

VOICES = ("slt", "rms", "awb", "kal16")


@dataclass(frozen=True)
class Utterance:
    """`samples`: float at RATE; `phones`: (phone, end in seconds)."""

    samples: torch.Tensor
    phones: list[tuple[str, float]]


def speak(sentence: str, voice: str, folder: Path) -> Utterance:
    """Speak one sentence in one of flite's voices. Raises CalledProcessError if flite fails."""
    path = folder / f"{voice}.wav"
    argv = ["flite", "-voice", voice, "-psdur", "-t", sentence, "-o", str(path)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    timed = (word.split(":") for word in said.split())
    return Utterance(_read(path), [(phone, float(end)) for phone, end in timed])


def _read(path: Path) -> torch.Tensor:
    with wave.open(str(path)) as file:
        if file.getframerate() != RATE:
            raise ValueError(f"{path.name}: flite spoke at {file.getframerate()} Hz, {RATE} was expected")
        pcm = bytearray(file.readframes(file.getnframes()))
    return torch.frombuffer(pcm, dtype=torch.int16).float() / 32768


def stretched(samples: torch.Tensor, factor: float) -> torch.Tensor:
    """Resample the speech. A factor above 1 makes a slower and deeper speaker."""
    return F.interpolate(samples[None, None], size=int(len(samples) * factor), mode="linear")[0, 0]


def roughened(samples: torch.Tensor, dice: random.Random) -> torch.Tensor:
    """Change the tone and the loudness, and add noise and, sometimes, an echo."""
    tilt = dice.uniform(-0.6, 0.6)
    samples = torch.cat([samples[:1], samples[1:] + tilt * samples[:-1]])
    samples = samples / samples.abs().max() * dice.uniform(0.1, 0.9)
    noise_db = -dice.uniform(12, 50)
    samples = samples + torch.randn_like(samples) * samples.square().mean().sqrt() * 10 ** (noise_db / 20)
    if dice.random() < 0.3:
        delay = dice.randint(200, 1600)
        samples = samples + dice.uniform(0.1, 0.35) * F.pad(samples, (delay, 0))[: len(samples)]
    return samples


def wordless(length: int, dice: random.Random) -> torch.Tensor:
    """Return sound that is not speech: a steady chord of pure tones, or coloured noise."""
    seconds = torch.arange(length) / RATE
    if dice.random() < 0.6:
        tones = [dice.uniform(60, 4000) for _ in range(dice.randint(1, 4))]
        sound = torch.stack([torch.sin(6.2832 * hz * seconds) * dice.uniform(0.2, 1) for hz in tones]).sum(0)
    else:
        sound = torch.randn(length)
        if dice.random() < 0.5:
            sound = F.avg_pool1d(F.pad(sound, (0, 15))[None, None], 16, 1)[0, 0]
    return sound / sound.abs().max() * dice.uniform(0.05, 0.9)
