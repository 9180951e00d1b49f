"""Run one job step by step: read the speech, find the face, draw each picture, write the file."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

import jobkit
from lipsync.encode import COMMENT, Coding, create_video
from lipsync.engine import PreviewEngine

from . import features, sound, voice
from .clip import Clip, back_and_forth
from .compose import Composer, Layout
from .render import Person
from .scan import scan

RESULT = "result.mp4"
_LONGEST_S = 2 * 3600
_SCANNED = 0.3  # the job's progress when the first pass is done


@dataclass(frozen=True)
class PreviewOptions:
    """The settings of a job, which the edge has checked against endpoint.toml.

    Without `fps`, the video's own rate is used. `gain` scales how far the mouth opens; `max_side` bounds the result's
    longer side, in pixels.
    """

    fps: int | None
    gain: float
    max_side: int
    crf: int
    preset: str

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "PreviewOptions":
        fps = int(fields["fps"]) if "fps" in fields else None
        crf, preset = int(fields.get("crf", 20)), str(fields.get("preset", "superfast"))
        return cls(fps, float(fields.get("gain", 1.0)), int(fields.get("max_side", 1920)), crf, preset)


def work(job: jobkit.Job, engine: PreviewEngine) -> dict[str, Any]:
    """Write result.mp4 and return its properties. Raises BadInput with the codes in endpoint.toml."""
    options = PreviewOptions.of(job.input)
    heard = _heard(job, engine)
    clip = Clip(job.path("video"), options.fps, options.max_side)
    coding = Coding(clip.fps, options.crf, options.preset)
    total = max(1, round(heard.seconds * coding.fps))
    curves = voice.curves(engine.mouth, heard, float(coding.fps), total)
    with torch.inference_mode():
        began = time.monotonic()
        seen = scan(clip, total, engine, _teller(job, "track", (0.0, _SCANNED), total))
        scanned = time.monotonic()
        person = Person(seen.face, seen.teeth, options.gain)
        layout = Layout.of(seen, clip.shape)
        composer = Composer(seen, person, layout, engine)
        shown = back_and_forth(clip, len(seen.points), total)
        tell = _teller(job, "render", (_SCANNED, 1.0), total)
        with job.output(RESULT) as path, create_video(path, clip.shape, coding, job.path("audio")) as writer:
            composer.compose(shown, curves, writer, tell)
    job.metric("track_fps", len(seen.points) / (scanned - began), "1/s")
    job.metric("render_fps", total / (time.monotonic() - scanned), "1/s")
    return {
        "engine": COMMENT,
        "device": engine.device.type,
        "width": clip.shape.width,
        "height": clip.shape.height,
        "fps": round(float(coding.fps), 3),
        "frames": total,
        "seconds": round(heard.seconds, 3),
        "face_box": layout.box,
        "own_teeth": seen.teeth is not None,
    }


def _heard(job: jobkit.Job, engine: PreviewEngine) -> features.Features:
    heard = features.extract(sound.samples(job.path("audio"), _LONGEST_S), engine.device)
    if heard.samples <= 0:
        raise jobkit.BadInput("unreadable_audio", "the recording holds no sound at all; send another file")
    return heard


def _teller(job: jobkit.Job, stage: str, span: tuple[float, float], total: int) -> Callable[[int], None]:
    """Return a callback that reports the progress of a stage, which covers `span` of the job."""
    start, end = span
    return lambda done: job.progress(start + (end - start) * done / total, stage, done, total)
