"""The operator's settings, from the environment (`ENV` in a Dockerfile)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

JOB_ENV = "LAMPLIGHTER_JOB"
CHOICES = {"mode": ("auto", "http"), "sharpen": ("auto", "never")}


class WorkerSettings(NamedTuple):
    """The operator's settings. A field's environment variable is HEYGEM_ and its name in upper case.

    load_s: limit for loading the models (users reported 5 to 22 s, plus the vendor's sleeps of 10 to 15 s).
    stall_s: limit without a new frame, stage or byte. It is below the runner's 180 s, so that we can name the cause.
    base_s + per_audio_s x seconds of audio: limit for the vendor's work on a job. The slowest reported run took 7.4 s
    for each second of audio (RTX 50 with GFPGAN).
    batch_size: frames that the GPU processes at once; a smaller batch needs less memory.
    sharpen: "never" keeps the vendor from sharpening blurred faces (GFPGAN); with "auto" the vendor decides.
    label: text that is burnt into every result; empty for no label. label_font: path of its font file.
    """

    home: Path = Path("/code")
    mode: str = "auto"  # "http": run app_local.py even where the module is known
    load_s: float = 120.0
    stall_s: float = 150.0
    base_s: float = 600.0
    per_audio_s: float = 15.0
    max_audio_s: float = 1800.0
    batch_size: int = 4
    sharpen: str = "auto"
    label: str = ""
    label_font: str = ""

    @classmethod
    def read(cls, env: Mapping[str, str] = os.environ) -> WorkerSettings:
        """Return the settings in `env`. Raises ValueError that names the variable with an unusable value."""
        given: dict[str, Any] = {}
        for name, default in cls._field_defaults.items():
            text = env.get("HEYGEM_" + name.upper())
            if text:
                given[name] = _parse_value(
                    Path if isinstance(default, Path) else type(default), "HEYGEM_" + name.upper(), text
                )
        for name, allowed in CHOICES.items():
            if given.get(name, allowed[0]) not in allowed:
                raise ValueError(f"HEYGEM_{name.upper()}={given[name]!r} is not one of {', '.join(allowed)}")
        return cls(**given)

    def deadline_s(self, audio_s: float) -> float:
        """Return the seconds that the vendor may take for `audio_s` seconds of speech."""
        return self.base_s + self.per_audio_s * audio_s


def _parse_value(kind: Callable[[str], Any], name: str, text: str) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"{name}={text!r} is no number: correct it or leave it out") from error


def home(env: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the vendor's code."""
    return Path(env.get("HEYGEM_HOME") or WorkerSettings().home)


def job_folder(env: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the job. A warm worker needs it before its job arrives."""
    return Path(env.get(JOB_ENV, "/job"))
