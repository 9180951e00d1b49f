"""Measure the preview engine in frames a second of whole jobs, at 640x360 and at 1080p with a face of 700 pixels.

    python -m bench.preview [--runs 3]

Prints one JSON line. A job is a run of the image's program as a child process, including the loading of the models.
`fps` is by the clock (median of the runs, which alternate between the sizes). `fps_two_cores` is by the processor time,
which a busy machine changes little. The peak memory is that of the larger size. Inputs are fetched from packages
(images/preview/samples.py).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av

ROOT = Path(__file__).resolve().parents[1]
PREVIEW = ROOT / "images" / "preview"
SIZES = {"640x360": (640, 360), "1920x1080": (1920, 1080)}
CORES = 2


def resized(source: Path, target: Path, width: int, height: int) -> None:
    with av.open(source) as given, av.open(target, "w") as file:
        video = given.streams.video[0]
        stream = file.add_stream("libx264", rate=video.average_rate, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in given.decode(video):
            file.mux(stream.encode(frame.reformat(width, height, "yuv420p", interpolation="BICUBIC")))
        file.mux(stream.encode(None))


def run_job(folder: Path, video: Path, speech: Path) -> dict[str, float]:
    """Run one job. Return its frames, wall-clock and processor seconds, and peak memory in MiB."""
    for part in ("in", "out", "tmp"):
        (folder / part).mkdir(parents=True)
    (folder / "in" / "v.mp4").hardlink_to(video)
    (folder / "in" / "a.wav").write_bytes(speech.read_bytes())
    job = {"id": "bench", "endpoint": "preview", "input": {"video": "v.mp4", "audio": "a.wav"}}
    (folder / "job.json").write_text(json.dumps(job))
    env = os.environ | {"LAMPLIGHTER_JOB": str(folder), "PYTHONPATH": str(ROOT / "images" / "jobkit")}
    began = time.monotonic()
    with subprocess.Popen([sys.executable, PREVIEW / "main.py"], env=env, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"the preview engine ended with {process.returncode}: see what it said above")
    data = json.loads((folder / "out" / "output.json").read_text())
    return {
        "frames": data["frames"],
        "wall_s": time.monotonic() - began,
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_mb": used.ru_maxrss / 1024,
    }


def measure(folder: Path, runs: int) -> dict[str, Any]:
    samples = ROOT / ".cache" / "samples"
    subprocess.run([sys.executable, PREVIEW / "samples.py", samples], check=True)
    videos = {name: folder / f"{name}.mp4" for name in SIZES}
    for name, size in SIZES.items():
        resized(samples / "face.mp4", videos[name], *size)
    done: dict[str, list[dict[str, float]]] = {name: [] for name in SIZES}
    for turn in range(runs):
        for name, video in videos.items():
            done[name].append(run_job(folder / f"{name}-{turn}", video, samples / "speech.wav"))
    rows = {name: _summary(jobs) for name, jobs in done.items()}
    return {"bench": "preview", "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), **rows}


def _summary(jobs: list[dict[str, float]]) -> dict[str, float]:
    return {
        "frames": jobs[0]["frames"],
        "fps": round(statistics.median(job["frames"] / job["wall_s"] for job in jobs), 1),
        "fps_two_cores": round(statistics.median(CORES * job["frames"] / job["cpu_s"] for job in jobs), 1),
        "peak_mb": round(max(job["peak_mb"] for job in jobs)),
    }


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--runs", type=int, default=3)
    given = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), given.runs)))


if __name__ == "__main__":
    main()
