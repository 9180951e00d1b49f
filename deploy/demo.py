"""`./justw demo`: turn a face and a voice into a talking video on this machine.

Starts broker, edge and runner in demo/data. With a Docker engine it builds the preview image; otherwise it chooses the
process engine, and says so. Then it submits the sample clips and writes demo/result.mp4.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runner.engines.process import CannotRunJobs, ProcessEngine
from runner.engines.process_job import NoSuchUser, resolve_job_user

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo"
LAMPLIGHTER = [sys.executable, "-m", "lamplighter"]


def print_step(text: str) -> None:
    """Print the start or the result of one step to the user, as `demo: …`."""
    print(f"demo: {text}", flush=True)


def run(*argv: str | Path, **environ: str) -> None:
    """Run a step. If it fails, end the demo with its output."""
    done = subprocess.run([*map(str, argv)], cwd=ROOT, env=os.environ | environ, check=False)
    if done.returncode:
        step = " ".join(map(str, argv[:4]))
        sys.exit(f"demo: {step} … failed with exit code {done.returncode}: fix the error above, then run it again")


def docker_answers() -> bool:
    """Whether a Docker engine answers the client on PATH."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "version"], capture_output=True, check=False, timeout=20).returncode == 0


def choose_engine(asked: str) -> str:
    """Return `docker` after building the image, or `process`. Ends the demo if `docker` was asked for and fails."""
    if asked == "process" or (asked == "auto" and not docker_answers()):
        print_step("no Docker engine answers: the job runs as a plain process, not in a container")
        return "process"
    print_step("building the preview image")
    built = subprocess.run([str(ROOT / "images/preview/build.sh")], cwd=ROOT, check=False).returncode == 0
    if built:
        return "docker"
    if asked == "docker":
        sys.exit("demo: the image could not be built: fix the error above, then run it again")
    print_step("the image could not be built: the job runs as a plain process, not in a container")
    return "process"


def choose_user() -> dict[str, str]:
    """Return the runner's settings for jobs as plain processes: run as another user than root if this machine can."""
    try:
        user = resolve_job_user(None)
        ProcessEngine(DEMO / "none", ROOT / "images" / "jobkit", user).check_job_user(
            DEMO, [ROOT / "images" / "preview"]
        )
    except (NoSuchUser, CannotRunJobs) as error:
        print_step(f"{error}")
        print_step("the demo runs only its own program: it does so as root")
        return {"LAMPLIGHTER_PROCESS__USER": ""}
    return {}


@contextmanager
def run_up(engine: str, port: int) -> Iterator[subprocess.Popen[str]]:
    """Yield a ready `lamplighter up`, and stop it at the end."""
    environ = os.environ | (choose_user() if engine == "process" else {})
    data = DEMO / "data"
    argv = [*LAMPLIGHTER, "up", "--port", str(port), "--data", str(data), "--engine", engine, "--json"]
    with subprocess.Popen(argv, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True) as up:
        line = up.stdout.readline() if up.stdout else ""
        if not line:
            sys.exit(f"demo: lamplighter up did not start: see {data / 'logs'}")
        print_step(f"broker, edge and runner are up at {json.loads(line)['url']} (logs in {data / 'logs'})")
        try:
            yield up
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="./justw demo", description=__doc__.splitlines()[0])
    parser.add_argument("--video", type=Path, help="your own video of a face")
    parser.add_argument("--audio", type=Path, help="your own speech")
    parser.add_argument("--engine", choices=["auto", "docker", "process"], default="auto")
    parser.add_argument("--port", type=int, default=0, help="of the edge; 0 picks a free one")
    parser.add_argument("--keep", action="store_true", help="leave it running until Ctrl-C")
    asked = parser.parse_args()
    samples, result = DEMO / "samples", DEMO / "result.mp4"
    DEMO.mkdir(exist_ok=True)
    if asked.video is None or asked.audio is None:
        print_step("taking a sample face and voice")
        run(sys.executable, "images/preview/samples.py", samples)
    engine = choose_engine(asked.engine)
    with run_up(engine, asked.port) as up:
        video, audio = asked.video or samples / "face.mp4", asked.audio or samples / "speech.wav"
        print_step(f"submitting {video.name} and {audio.name}")
        run(
            *LAMPLIGHTER, "submit", "preview", "--data", DEMO / "data", "--video", video, "--audio", audio, "-o", result
        )
        print_step(f"the talking video is {result}")
        print_step("your own: ./justw demo --video FACE.mp4 --audio SPEECH.wav")
        if asked.keep:
            print_step(f"serving until Ctrl-C; in another terminal: lamplighter --help, with --data {DEMO / 'data'}")
            with_ctrl_c(up)


def with_ctrl_c(up: subprocess.Popen[str]) -> None:
    """Wait for the end of `up`; Ctrl-C is not an error."""
    try:
        up.wait()
    except KeyboardInterrupt:
        print_step("stopping")


if __name__ == "__main__":
    main()
