"""Runs an image's program as a plain child process on a job folder: the container contract without an engine."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from schemas.container_protocol import ContainerLine, JobFile, JobTimeouts, LineParser

IMAGES = Path(__file__).resolve().parents[2] / "images"


def make_job(folder: Path, given: dict[str, Any], **files: bytes) -> Path:
    """A job folder whose input is `given`, with `files` (name → content) in in/."""
    for part in ("in", "out", "tmp"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / "in" / name).write_bytes(data)
    job = JobFile(
        id="job-1", owner="ann", endpoint="test", round=1, attempt=2, input=given, timeouts=JobTimeouts(60, 20)
    )
    (folder / "job.json").write_bytes(msgspec.json.encode(job))
    return folder


@contextmanager
def run_program(program: Path, folder: Path, **env: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The program, running; killed at the end."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(IMAGES / "jobkit"), "LAMPLIGHTER_JOB": str(folder)}
    process = subprocess.Popen(
        [sys.executable, str(program)], env=environment | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def parse_messages(stdout: bytes) -> list[ContainerLine]:
    """What a finished program said on stdout."""
    parser = LineParser("stdout")
    return [found.message for found in [*parser.feed(stdout, 0), *parser.close()]]


def read_output_data(folder: Path) -> dict[str, Any]:
    """The job's result."""
    data: dict[str, Any] = json.loads((folder / "out" / "output.json").read_text())
    return data
