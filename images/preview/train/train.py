"""Train lipsync/mouth.pt: `nice python3 train/train.py [--utterances 1000] [--epochs 8]`. Needs flite on PATH.

Prints the correlation of each curve with the labels on held-out sentences, which were not used for training.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phones import curves
from sentences import sentences
from synthesis import VOICES, Utterance, roughened, speak, stretched, wordless

from lipsync.features import extract
from lipsync.voice import CURVES, WEIGHTS, MouthNet

HELD_OUT = 60
BATCH, CLIP = 32, 200  # utterances a step; mel frames of each
NON_SPEECH = 0.08  # share of examples without a voice, which teach the net to keep the mouth shut on hum and hiss
WEIGHT = torch.tensor([2.0, 1.0, 1.0, 1.5, 1.0])  # viewers notice errors of the jaw and of closures first
CPU = torch.device("cpu")


def example(said: Utterance, dice: random.Random | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normalised mel and the wanted curves of one utterance; with `dice`, of a varied copy of it."""
    if dice is None:
        heard = extract([said.samples], CPU).normalised()
        return heard, curves(said.phones, len(heard))
    if dice.random() < NON_SPEECH:
        heard = extract([wordless(len(said.samples), dice)], CPU).normalised()
        return heard, torch.zeros(len(heard), len(CURVES))
    stretch = 1 / dice.uniform(0.82, 1.25)
    heard = extract([roughened(stretched(said.samples, stretch), dice)], CPU).normalised()
    return heard, curves(said.phones, len(heard), stretch)


def clip(mel: torch.Tensor, wanted: torch.Tensor, dice: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Return CLIP frames from a random place in the example, padded with silence if it is shorter."""
    short = max(0, CLIP - len(mel))
    mel, wanted = F.pad(mel, (0, 0, 0, short), value=-4.0), F.pad(wanted, (0, 0, 0, short))
    start = dice.randint(0, len(mel) - CLIP)
    return mel[start : start + CLIP], wanted[start : start + CLIP]


def batches(said: list[Utterance], dice: random.Random) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    order = dice.sample(said, len(said))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        clips = [clip(*example(one, dice), dice) for one in order[start : start + BATCH]]
        yield torch.stack([mel for mel, _ in clips]), torch.stack([wanted for _, wanted in clips])


def correlations(net: MouthNet, held_out: list[Utterance]) -> dict[str, float]:
    net.eval()
    with torch.no_grad():
        pairs = [(net(mel[None])[0], wanted) for mel, wanted in (example(one, None) for one in held_out)]
    got, wanted = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])
    return {
        name: round(float(torch.corrcoef(torch.stack([got[:, i], wanted[:, i]]))[0, 1]), 3)
        for i, name in enumerate(CURVES)
    }


def spoken(count: int, dice: random.Random) -> list[Utterance]:
    text = sentences(dice)
    with tempfile.TemporaryDirectory() as folder:
        return [speak(next(text), VOICES[i % len(VOICES)], Path(folder)) for i in range(count)]


def fit(net: MouthNet, said: list[Utterance], held_out: list[Utterance], epochs: int, dice: random.Random) -> None:
    steps = epochs * (len(said) // BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, steps)
    began = time.monotonic()
    for epoch in range(epochs):
        net.train()
        total = 0.0
        for mel, wanted in batches(said, dice):
            loss = ((net(mel) - wanted).square() * WEIGHT).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        error = total / (len(said) // BATCH)
        print(f"epoch {epoch} loss {error:.4f} held out {correlations(net, held_out)} {time.monotonic() - began:.0f} s")


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--utterances", type=int, default=1000)
    flags.add_argument("--epochs", type=int, default=8)
    flags.add_argument("--out", type=Path, default=WEIGHTS)
    chosen = flags.parse_args()
    dice = random.Random(0)
    torch.manual_seed(0)
    said = spoken(chosen.utterances + HELD_OUT, dice)
    print(f"{len(said)} utterances, {sum(len(one.samples) for one in said) / 16000:.0f} s of speech")
    net = MouthNet()
    print(f"{sum(p.numel() for p in net.parameters())} parameters")
    fit(net, said[HELD_OUT:], said[:HELD_OUT], chosen.epochs, dice)
    state = {name: value.half() if value.is_floating_point() else value for name, value in net.state_dict().items()}
    torch.save(state, chosen.out)


if __name__ == "__main__":
    main()
