"""Run one job: speak the text, and say in the file which engine did."""

import struct
import wave
from pathlib import Path
from typing import NamedTuple, Protocol

import jobkit

RESULT = "speech.wav"
HAN = ("\u4e00", "\u9fff")  # CJK Unified Ideographs


class Speech(NamedTuple):
    """A text to speak. `voice` is a recording; without one, the engine uses a voice of its own."""

    text: str
    language: str
    speed: float
    voice: "Path | None"
    reference_text: str


class Engine(Protocol):
    """Something that speaks. `comment` is written into the file, and `clones` says whether it uses the given voice."""

    comment: str
    clones: bool

    def speak(self, speech: Speech, wav: Path) -> None:
        """Write the speech to `wav`. Raises JobError, BadInput."""


def speak(job: jobkit.Job, engine: Engine) -> "dict[str, object]":
    """Write speech.wav and return its properties."""
    text = job.input["text"]
    if not text.strip():
        raise jobkit.BadInput("text_empty", "the text has nothing to speak: send words")
    speech = Speech(
        text,
        job.input.get("language") or guess_language(text),
        float(job.input.get("speed", 1.0)),
        job.path("voice") if "voice" in job.input else None,
        job.input.get("reference_text", ""),
    )
    job.progress(0.0, "speak")
    with job.output(RESULT) as path:
        engine.speak(speech, path)
        add_comment(path, engine.comment)
        with wave.open(str(path), "rb") as file:
            rate, seconds = file.getframerate(), file.getnframes() / file.getframerate()
    job.progress(1.0, "speak")
    return {
        "engine": engine.comment,
        "language": speech.language,
        "cloned": engine.clones and speech.voice is not None,
        "sample_rate": rate,
        "seconds": round(seconds, 3),
    }


def guess_language(text: str) -> str:
    """Return zh if the text has a Chinese character, else en."""
    return "zh" if any(HAN[0] <= character <= HAN[1] for character in text) else "en"


def add_comment(wav: Path, comment: str) -> None:
    """Append a chunk LIST of type INFO with the field ICMT, which players show as the comment.

    Source: Multimedia Programming Interface and Data Specifications 1.0, Microsoft and IBM, 1991.
    """
    text = comment.encode() + b"\0"
    field = b"ICMT" + struct.pack("<I", len(text)) + text + b"\0" * (len(text) % 2)
    with wav.open("r+b") as file:
        file.seek(0, 2)
        end = file.tell()
        file.write(b"\0" * (end % 2) + b"LIST" + struct.pack("<I", len(field) + 4) + b"INFO" + field)
        size = file.tell() - 8
        file.seek(4)
        file.write(struct.pack("<I", size))
