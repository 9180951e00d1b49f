"""Run one job: give the files names that the program can take, run it, and check what it wrote."""

import json
import re
import subprocess
from pathlib import Path

import jobkit
from musetalk_worker.program import Settings, run_program

RESULT = "result.mp4"
PICTURES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff"})  # the program goes by the extension
PLAIN_PATH = re.compile(r"[A-Za-z0-9_./-]+")  # the program puts paths into a shell command without quotes


def work(job: jobkit.Job) -> "dict[str, object]":
    """Write result.mp4 and return its properties. Raises JobError, BadInput, TryAgain."""
    folder = job.tmp / "musetalk"
    folder.mkdir()
    if not PLAIN_PATH.fullmatch(str(folder)):
        raise jobkit.JobError("path_unusable", f"MuseTalk cannot work in {folder}: use a path of A-Z a-z 0-9 _ . / -")
    given = job.path("video")
    video = folder / ("face.png" if given.suffix.lower() in PICTURES else "face.mp4")
    video.symlink_to(given)
    audio = folder / "speech.wav"
    _make_wav(job.path("audio"), audio)
    settings = Settings(int(job.input.get("extra_margin", 10)), str(job.input.get("parsing_mode", "jaw")))
    written = run_program(job, folder, video, audio, settings)
    data = _probe(written)
    with job.output(RESULT) as path:
        written.replace(path)
    return data


def _make_wav(given: Path, wav: Path) -> None:
    """Write the sound as 16 kHz mono, which the program's own model hears. Raises BadInput."""
    argv = ["ffmpeg", "-v", "error", "-i", str(given), "-vn", "-ac", "1", "-ar", "16000", str(wav)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["it holds no sound"]
        raise jobkit.BadInput("unreadable_audio", f"{given.name} cannot be read ({said[-1]}); send another file")


def _probe(video: Path) -> "dict[str, object]":
    """Return the properties of the result. Raises JobError if it is not a video with sound."""
    entries = "stream=codec_type,width,height,r_frame_rate:format=duration"
    argv = ["ffprobe", "-v", "error", "-show_entries", entries, "-of", "json", str(video)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    found = json.loads(done.stdout or b"{}")
    streams = {stream["codec_type"]: stream for stream in found.get("streams", [])}
    if done.returncode or not {"video", "audio"} <= set(streams):
        raise jobkit.JobError("result_unusable", "MuseTalk wrote a file that is not a video with sound: see the log")
    shown = streams["video"]
    over, under = shown["r_frame_rate"].split("/")
    return {
        "engine": "MuseTalk 1.5",
        "width": shown["width"],
        "height": shown["height"],
        "fps": round(int(over) / int(under), 3),
        "seconds": round(float(found["format"]["duration"]), 3),
    }
