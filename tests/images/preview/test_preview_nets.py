"""The face nets against TensorFlow's own runtime, and the mouth net against what must never move a mouth.

litert.npz holds LiteRT 2.x's answers (every n-th value) to `pattern`.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from lipsync import features, sound, voice
from lipsync.engine import PreviewEngine
from lipsync.interpreter import Interpreter
from lipsync.tracker import _model
from tests.images.preview.lip_sync import FPS

CPU = torch.device("cpu")


def pattern(size: int) -> torch.Tensor:
    y, x, c = np.meshgrid(np.arange(size), np.arange(size), np.arange(3), indexing="ij")
    picture = 0.5 + 0.5 * np.sin(x * 0.11 + y * 0.07 * (c + 1) + (x * y) * 0.0013)
    return torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None]


@pytest.mark.parametrize("name", ["face_landmark", "face_detection_short_range", "face_detection_back"])
def test_interpreter_answers_as_litert_does(name: str) -> None:
    net = Interpreter(_model(f"{name}.tflite"), CPU)
    with np.load(Path(__file__).with_name("litert.npz")) as stored:
        for i, output in enumerate(net(pattern(net.size))):
            flat = output.reshape(-1)
            wanted = torch.from_numpy(stored[f"{name}.{i}"])
            got = flat[:: max(1, len(flat) // 200)]
            assert got.shape == wanted.shape
            assert (got - wanted).abs().max() < 5e-4 * max(1.0, float(wanted.abs().max()))


def test_a_batch_is_answered_like_its_pictures(engine: PreviewEngine) -> None:
    net = engine.faces.mesh
    pictures = torch.cat([pattern(net.size), pattern(net.size).flip(3)])
    together = net(pictures)[0]
    assert torch.allclose(together, torch.cat([net(one[None])[0] for one in pictures]), atol=1e-3)


def heard(engine: PreviewEngine, samples: np.ndarray | torch.Tensor) -> torch.Tensor:
    blocks = [torch.as_tensor(samples, dtype=torch.float32)]
    found = features.extract(blocks, CPU)
    return voice.curves(engine.mouth, found, FPS, max(1, round(found.seconds * FPS)))


def test_silence_shuts_the_mouth(engine: PreviewEngine) -> None:
    assert heard(engine, np.zeros(32_000)).max() < 1e-6


def test_noise_below_hearing_shuts_the_mouth(engine: PreviewEngine) -> None:
    assert heard(engine, np.random.default_rng(0).normal(0, 0.0003, 32_000)).max() < 0.01


@pytest.mark.parametrize("hz", [220, 440, 1000])
def test_a_tone_is_not_speech(engine: PreviewEngine, hz: int) -> None:
    tone = 0.5 * np.sin(2 * np.pi * hz * np.arange(48_000) / 16_000)
    assert heard(engine, tone)[:, 0].mean() < 0.25  # its start may be taken for a consonant


def test_speech_opens_and_closes_the_mouth_however_loud_it_is(engine: PreviewEngine, samples: Path) -> None:
    speech = torch.cat(list(sound.samples(samples / "speech.wav", 60.0)))
    loud, faint = heard(engine, speech), heard(engine, speech * 0.2)
    assert loud[:, 0].max() > 0.6
    assert loud[:, 0].min() < 0.1
    assert torch.corrcoef(torch.stack([loud[:, 0], faint[:, 0]]))[0, 1] > 0.95


def test_blocks_do_not_change_what_is_heard(samples: Path) -> None:
    speech = torch.cat(list(sound.samples(samples / "speech.wav", 60.0)))
    whole, parts = (features.extract(blocks, CPU) for blocks in ([speech], speech.split(777)))
    assert whole.samples == parts.samples == len(speech)
    assert torch.allclose(whole.mel, parts.mel, atol=1e-4)
    assert torch.allclose(whole.dbfs, parts.dbfs, atol=1e-3)


def test_long_speech_is_heard_in_passes_without_a_seam(
    engine: PreviewEngine, monkeypatch: pytest.MonkeyPatch, samples: Path
) -> None:
    speech = torch.cat(list(sound.samples(samples / "speech.wav", 60.0)))
    at_once = heard(engine, speech)
    monkeypatch.setattr(voice, "_STRIDE", 100)
    assert torch.allclose(heard(engine, speech), at_once, atol=1e-4)
