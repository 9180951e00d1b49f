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

from schemas.container_protocol import ContainerLine, ErrorLine, ProgressLine
from tests.images.heygem.media import write_speech, write_video
from tests.images.job_process import IMAGES, make_job, parse_messages

MAIN = IMAGES / "heygem" / "main.py"
VENDORS = Path(__file__).parent / "vendors"
STAND_IN_VENDORS = ("gen1", "gen2", "unknown")
DISABLED_TIMEOUT_S = 100  # a test that gets here has failed


@dataclass(frozen=True)
class WorkerSamples:
    """Files to send, what the played vendor gives back for them, and where each played vendor's code lies."""

    video: Path
    audio: Path
    made: Path
    homes: Path


@dataclass(frozen=True)
class WorkerRun:
    """How a run went."""

    code: int
    said: list[ContainerLine]
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
    def progress(self) -> list[ProgressLine]:
        return [line for line in self.said if isinstance(line, ProgressLine)]

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "out" / "output.json").read_text())
        return found


def make_samples(folder: Path) -> WorkerSamples:
    """Two seconds each."""
    made = write_video(folder / "made.mp4", sound=True)
    for vendor in STAND_IN_VENDORS:
        copy_vendor(vendor, folder / "homes" / vendor)
    return WorkerSamples(write_video(folder / "video.mp4"), write_speech(folder / "audio.wav"), made, folder / "homes")


def copy_vendor(vendor: str, home: Path) -> Path:
    """The played vendor's /code, as in its image: what all share, and its own on top."""
    for part in ("base", vendor):
        shutil.copytree(VENDORS / part, home, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return home


def worker_environ(folder: Path, samples: WorkerSamples, vendor: str, fake: str = "ok", **env: str) -> dict[str, str]:
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


def job_folder(folder: Path, samples: WorkerSamples, **given: int) -> Path:
    """Named as no shell likes it: what the vendor gets has names of our own."""
    files = {"a 'b' (最终).mp4": samples.video.read_bytes(), "$(c);d.wav": samples.audio.read_bytes()}
    names = list(files)
    return make_job(folder, {"video": names[0], "audio": names[1], **given}, **files)


@contextmanager
def start_worker(
    env: dict[str, str], python: str = sys.executable, program: Path = MAIN
) -> Iterator["subprocess.Popen[bytes]"]:
    """The worker, running; killed at the end."""
    argv = [python, str(program)]
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_end(process: "subprocess.Popen[bytes]", folder: Path, before: bytes = b"") -> WorkerRun:
    """Wait for its end; `before` is what was read of its stdout already."""
    out, err = process.communicate(timeout=DISABLED_TIMEOUT_S)
    return WorkerRun(process.returncode, parse_messages(before + out), err.decode(), folder)


def run_worker_job(folder: Path, samples: WorkerSamples, vendor: str, fake: str = "ok", **env: str) -> WorkerRun:
    """One job from start to end."""
    job_folder(folder, samples)
    with start_worker(worker_environ(folder, samples, vendor, fake, **env)) as process:
        return wait_for_end(process, folder)
