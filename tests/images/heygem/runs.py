"""Runs the worker as the process engine does: main.py as a child on a job folder, a played vendor as its home."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.container import ErrorLine, Message, Progress
from tests.images.heygem.media import film, speech
from tests.images.job_process import IMAGES, make_job, messages

MAIN = IMAGES / "heygem" / "main.py"
VENDORS = Path(__file__).parent / "vendors"
PLAYED = ("gen1", "gen2", "unknown")
NEVER_S = 100  # a test that gets here has failed


@dataclass(frozen=True)
class Samples:
    """Files to send, what the played vendor gives back for them, and where each played vendor's code lies."""

    video: Path
    audio: Path
    made: Path
    homes: Path


@dataclass(frozen=True)
class Ended:
    """How a run went."""

    code: int
    said: list[Message]
    log: str
    folder: Path

    @property
    def error(self) -> tuple[int, str]:
        """Exit code and failure code."""
        return self.code, next(line.code for line in self.said if isinstance(line, ErrorLine))

    @property
    def message(self) -> str:
        """What it says of its failure."""
        return next(line.message for line in self.said if isinstance(line, ErrorLine))

    @property
    def progress(self) -> list[Progress]:
        return [line for line in self.said if isinstance(line, Progress)]

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "out" / "output.json").read_text())
        return found


def make_samples(folder: Path) -> Samples:
    """Two seconds each."""
    made = film(folder / "made.mp4", sound=True)
    for vendor in PLAYED:
        lay_out(vendor, folder / "homes" / vendor)
    return Samples(film(folder / "video.mp4"), speech(folder / "audio.wav"), made, folder / "homes")


def lay_out(vendor: str, home: Path) -> Path:
    """The played vendor's /code, as in its image: what all share, and its own on top."""
    for part in ("base", vendor):
        shutil.copytree(VENDORS / part, home, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return home


def environment(folder: Path, samples: Samples, vendor: str, fake: str = "ok", **env: str) -> dict[str, str]:
    """What the worker finds around it."""
    return {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(IMAGES / "jobkit"),
        "LAMPLIGHTER_JOB": str(folder),
        "HEYGEM_HOME": str(samples.homes / vendor),
        "HEYGEM_FAKE": fake,
        "HEYGEM_FAKE_RESULT": str(samples.made),
        **env,
    }


def job_folder(folder: Path, samples: Samples, **given: int) -> Path:
    """Named as no shell likes it: what the vendor gets has names of our own."""
    files = {"a 'b' (最终).mp4": samples.video.read_bytes(), "$(c);d.wav": samples.audio.read_bytes()}
    names = list(files)
    return make_job(folder, {"video": names[0], "audio": names[1], **given}, **files)


@contextmanager
def worker(
    env: dict[str, str], python: str = sys.executable, program: Path = MAIN
) -> Iterator["subprocess.Popen[bytes]"]:
    """The worker, running; killed at the end."""
    argv = [python, str(program)]
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(process: "subprocess.Popen[bytes]", folder: Path, before: bytes = b"") -> Ended:
    """Wait for its end; `before` is what was read of its stdout already."""
    out, err = process.communicate(timeout=NEVER_S)
    return Ended(process.returncode, messages(before + out), err.decode(), folder)


def run(folder: Path, samples: Samples, vendor: str, fake: str = "ok", **env: str) -> Ended:
    """One job from start to end."""
    job_folder(folder, samples)
    with worker(environment(folder, samples, vendor, fake, **env)) as process:
        return finish(process, folder)
