"""The image's program as a process: real speech from espeak-ng, and F5-TTS with a stand-in for its package."""

import os
import subprocess
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.container_protocol import ErrorLine, ExitCode
from tests.images.job_process import IMAGES, make_job, parse_messages, read_output_data, run_program
from tests.images.tts.espeak import require_espeak
from tests.support.docker_images import docker_url

__all__ = ["docker_url"]

MAIN = IMAGES / "tts" / "main.py"
VENDORS = Path(__file__).parent / "vendors"
WEIGHTS = ("model.safetensors", "vocab.txt", "vocos/config.yaml", "vocos/pytorch_model.bin")
CLONE = {"text": "Good morning", "voice": "v.wav", "reference_text": "hello"}


@pytest.mark.docker
def test_the_image_is_built_without_weights(docker_url: str) -> None:
    """Build all but the packages, which need a network, with the builder that Debian's Docker has."""
    before, _, rest = (IMAGES / "tts" / "Dockerfile").read_text().partition("RUN if ")
    dockerfile = before + rest.partition("fi\n")[2]
    command = ["docker", "--host", docker_url, "build", "--quiet", "--file", "-", str(IMAGES)]
    env = {"PATH": os.environ["PATH"], "DOCKER_BUILDKIT": "0"}
    done = subprocess.run(command, input=dockerfile, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run(folder: Path, given: dict[str, Any], files: dict[str, bytes] | None = None, **env: str) -> SimpleNamespace:
    job = make_job(folder, given, **(files or {}))
    with run_program(MAIN, job, **env) as process:
        stdout, stderr = process.communicate(timeout=60)
    errors = [line for line in parse_messages(stdout) if isinstance(line, ErrorLine)]
    return SimpleNamespace(code=process.returncode, errors=errors, wav=job / "out" / "speech.wav", job=job, log=stderr)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    for name in WEIGHTS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"weights")
    return folder


def run_f5(folder: Path, given: dict[str, Any], weights: Path) -> SimpleNamespace:
    env = {"LAMPLIGHTER_TTS_ENGINE": "f5", "LAMPLIGHTER_TTS_MODELS": str(weights)}
    return run(folder, given, {"v.wav": b"voice"}, PYTHONPATH=f"{VENDORS}:{IMAGES / 'jobkit'}", **env)


def seconds(wav: Path) -> float:
    with wave.open(str(wav), "rb") as file:
        return file.getnframes() / file.getframerate()


@pytest.mark.parametrize(("text", "language"), [("Good morning, everybody.", "en"), ("大家早上好，欢迎光临。", "zh")])
def test_a_text_is_spoken_in_its_language(tmp_path: Path, text: str, language: str) -> None:
    require_espeak()
    done = run(tmp_path / "job", {"text": text})
    assert done.code == 0, done.log
    data = read_output_data(done.job)
    assert (data["language"], data["cloned"]) == (language, False)
    assert data["seconds"] == round(seconds(done.wav), 3) > 1
    with wave.open(str(done.wav), "rb") as file:
        assert max(abs(sample) for sample in memoryview(file.readframes(file.getnframes())).cast("h")) > 1000


def test_the_file_itself_says_that_it_is_not_the_given_voice(tmp_path: Path) -> None:
    require_espeak()
    done = run(tmp_path / "job", {"text": "Good morning", "voice": "v.wav"}, {"v.wav": b"voice"})
    assert done.code == 0, done.log
    shown = subprocess.run(
        ["ffprobe", "-v", "error", "-show_entries", "format_tags=comment", "-of", "default=nk=1:nw=1", str(done.wav)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == "spoken by espeak-ng (a synthetic voice, not the given one)"
    assert read_output_data(done.job)["cloned"] is False


def test_speed_changes_the_length(tmp_path: Path) -> None:
    require_espeak()
    slow, fast = (
        run(tmp_path / str(speed), {"text": "one two three four five six seven", "speed": speed})
        for speed in (0.5, 2.0)
    )
    assert seconds(slow.wav) > 2 * seconds(fast.wav)


@pytest.mark.parametrize(
    ("given", "code"),
    [({"text": " \n"}, "text_empty"), ({"text": "hello", "language": "xx"}, "language_unknown")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_spoken_is_the_clients_fault(tmp_path: Path, given: dict[str, Any], code: str) -> None:
    require_espeak()
    done = run(tmp_path / "job", given)
    assert (done.code, [error.code for error in done.errors]) == (ExitCode.BAD_INPUT, [code])
    assert list((done.job / "out").iterdir()) == []


def test_without_its_program_it_says_how_to_install_it(tmp_path: Path) -> None:
    done = run(tmp_path / "job", {"text": "hello"}, PATH=str(tmp_path))
    assert [error.code for error in done.errors] == ["module_missing"]
    assert "install Debian's package espeak-ng" in done.errors[0].message


def test_f5_clones_the_given_voice(tmp_path: Path, weights: Path) -> None:
    done = run_f5(tmp_path / "job", CLONE, weights)
    assert done.code == 0, done.log
    data = read_output_data(done.job)
    assert (data["engine"], data["cloned"], data["sample_rate"]) == ("spoken by F5-TTS (a cloned voice)", True, 24_000)
    assert data["seconds"] == round(seconds(done.wav), 3) == 0.8
    assert b"spoken by F5-TTS" in done.wav.read_bytes()[-60:]


@pytest.mark.parametrize(
    ("missing", "code"), [("voice", "voice_missing"), ("reference_text", "reference_text_missing")]
)
def test_f5_needs_a_voice_and_what_it_says(tmp_path: Path, weights: Path, missing: str, code: str) -> None:
    done = run_f5(tmp_path / "job", {name: value for name, value in CLONE.items() if name != missing}, weights)
    assert (done.code, [error.code for error in done.errors]) == (ExitCode.BAD_INPUT, [code])


def test_f5_without_its_weights_names_them(tmp_path: Path, weights: Path) -> None:
    (weights / "vocab.txt").unlink()
    done = run_f5(tmp_path / "job", CLONE, weights)
    assert [error.code for error in done.errors] == ["weights_missing"]
    assert "lacks vocab.txt" in done.errors[0].message


def test_an_unknown_engine_is_named(tmp_path: Path) -> None:
    done = run(tmp_path / "job", {"text": "hello"}, LAMPLIGHTER_TTS_ENGINE="parrot")
    assert [(error.code, error.message) for error in done.errors] == [
        ("engine_unknown", "LAMPLIGHTER_TTS_ENGINE is 'parrot': set it to one of espeak, f5")
    ]
