"""Start `scripts.inference` of MuseTalk 1.5, follow its output, and tell what went wrong.

The program catches its own errors, prints them, and exits 0. So only its result tells whether it succeeded.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import jobkit

HOME = Path("/opt/musetalk")  # as the Dockerfile places it
RESULT = "result.mp4"
VERSION = "v15"
BATCH_SIZE = 8
READ_BYTES = 65_536
TAIL_LINES = 5

# A line of tqdm: the step and the number of steps. The first bar counts batches, the second frames.
STEP = re.compile(r"(\d+)/(\d+) \[")
STAGES = (("Starting inference", "render", 0.1, 0.8), ("Padding generated images", "compose", 0.8, 1.0))
FAILURE = "Error occurred during processing:"
NO_FACE = ("integer modulo by zero", "integer division or modulo by zero")  # no frame had a face, so there is no list


class Settings(NamedTuple):
    """The settings of a job, which the edge has checked against endpoint.toml."""

    extra_margin: int
    parsing_mode: str


def run_program(job: jobkit.Job, folder: Path, video: Path, audio: Path, settings: Settings) -> Path:
    """Run the program and return its video. Raises BadInput, TryAgain, JobError."""
    home = Path(os.environ.get("LAMPLIGHTER_MUSETALK_HOME", HOME))
    if not (home / "scripts" / "inference.py").is_file():
        raise jobkit.JobError("module_missing", f"no MuseTalk in {home}: build the image as its README.md says")
    tasks = folder / "tasks.yaml"
    tasks.write_text(f"task_0:\n  video_path: {video}\n  audio_path: {audio}\n")
    results = folder / "results"
    results.mkdir()
    follower = _Follower(job)
    job.progress(0.0, "prepare")
    with subprocess.Popen(
        _arguments(tasks, results, settings),
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            for line in _lines(process.stdout):
                follower.take(line)
        finally:
            _kill_group(process)
    written = results / VERSION / RESULT
    if process.returncode or not written.is_file() or follower.no_face:
        raise follower.failure(process.returncode)
    return written


def _arguments(tasks: Path, results: Path, settings: Settings) -> "list[str]":
    return [
        *(sys.executable, "-u", "-m", "scripts.inference"),
        *("--inference_config", str(tasks), "--result_dir", str(results), "--output_vid_name", RESULT),
        *(
            "--version",
            VERSION,
            "--use_float16",
            "--batch_size",
            os.environ.get("MUSETALK_BATCH_SIZE", str(BATCH_SIZE)),
        ),
        *("--unet_model_path", "models/musetalkV15/unet.pth", "--unet_config", "models/musetalkV15/musetalk.json"),
        *("--extra_margin", str(settings.extra_margin), "--parsing_mode", settings.parsing_mode),
    ]


class _Follower:
    """Reads the program's lines: progress for the job, and the reason of a failure."""

    def __init__(self, job: jobkit.Job) -> None:
        self._job = job
        self._stage = ("prepare", 0.0, 0.1)
        self._reason = ""
        self._tail: list[str] = []

    @property
    def no_face(self) -> bool:
        """Whether the program ended because no frame has a face."""
        return any(text in self._reason for text in NO_FACE)

    def take(self, line: str) -> None:
        """Read the progress, or a reason to fail, from the next line of output."""
        name, start, end = self._stage
        if step := STEP.search(line):
            done, total = int(step[1]), int(step[2])
            self._job.progress(start + (end - start) * done / max(1, total), name, done, total)
            return
        self._tail = [*self._tail, line][-TAIL_LINES:]
        self._job.log(line)
        self._stage = next(((stage, at, to) for text, stage, at, to in STAGES if text in line), self._stage)
        if FAILURE in line:
            self._reason = line.partition(FAILURE)[2].strip()

    def failure(self, code: int) -> jobkit.JobError:
        """Return the error for an exit with `code`, by what the program printed."""
        if self.no_face:
            return jobkit.BadInput(
                "no_face", "no face was found in the video; send one that shows a face from the front"
            )
        said = self._reason or (self._tail[-1] if self._tail else f"exit code {code}")
        if "out of memory" in said.lower():
            return jobkit.TryAgain("cuda_oom", f"MuseTalk: {said}: lower MUSETALK_BATCH_SIZE, or use a larger GPU")
        return jobkit.JobError("musetalk_failed", f"MuseTalk: {said}: look into the job's log")


def _lines(stream: "IO[bytes]") -> "Iterator[str]":
    """Yield lines. A progress bar ends its own with a carriage return."""
    rest = b""
    while data := os.read(stream.fileno(), READ_BYTES):
        *whole, rest = re.split(rb"[\r\n]+", rest + data)
        yield from (line.decode(errors="replace") for line in whole if line.strip())
    if rest.strip():
        yield rest.decode(errors="replace")


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill what the program has started, too: its ffmpeg does not end with it."""
    if process.poll() is None:
        try:
            process.wait(timeout=1 if sys.exc_info()[0] is None else 0)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
