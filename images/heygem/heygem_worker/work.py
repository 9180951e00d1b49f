"""One job, a straight line: make the inputs ready, let the vendor run under watch, check the video, hand it over."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from heygem_worker import failures, inputs, label, marks, media, progress, result
from heygem_worker.calling import Call
from heygem_worker.loading import TICK_S, Loaded, load
from heygem_worker.vendor import FAILED, RUNNING, Task
from heygem_worker.watchdog import Limits, Watchdog
from jobkit import Job

__all__ = ["load", "work"]

SWITCHES = {"pn": 1, "chaofen": 0, "watermark": 0, "digital_auth": 0}  # with what is meant where the job is silent


def work(job: Job, loaded: Loaded) -> dict[str, Any]:
    """Writes result.mp4 and returns what it is. Raises jobkit's errors: see failures.py for the codes."""
    try:
        return _done(job, loaded)
    finally:
        loaded.close()


def _done(job: Job, loaded: Loaded) -> dict[str, Any]:
    began = time.monotonic()
    tools, place = media.tools(), loaded.place
    switches = {name: int(job.input.get(name, default)) for name, default in SWITCHES.items()}
    marks.check(switches, place)
    tell, longest_s = progress.preparing(job.progress), loaded.settings.max_audio_s
    files = inputs.Files(job.path("video"), job.path("audio"))
    given = inputs.prepare(files, place.inputs, tools, longest_s, tell)
    task = Task(_code(job), given.audio, given.video, **switches)
    _follow(job, loaded, task, given)
    job.progress(progress.CHECK.begins, progress.CHECK.name)
    video = result.find(place.results_of(task.code))
    picture = result.check(video, tools, given)
    if loaded.settings.label:
        video, made = place.labelled, video
        label.burn(made, video, picture.seconds, progress.labelling(job.progress, picture.seconds))
        picture = result.check(video, tools, given)
    result.hand_over(job, video)
    return {
        "engine": loaded.vendor.name,
        "width": picture.width,
        "height": picture.height,
        "fps": round(float(picture.fps), 3),
        "seconds": round(picture.seconds, 3),
        "cost_s": round(time.monotonic() - began, 1),
    }


def _code(job: Job) -> str:
    """One of ours, unlike any other attempt's: it becomes file names and part of shell commands."""
    return "job" + hashlib.sha256(f"{job.id}/{job.round}/{job.attempt}".encode()).hexdigest()[:16]


def _follow(job: Job, loaded: Loaded, task: Task, given: inputs.Inputs) -> None:
    """Until the vendor is through; raises what went wrong, its own words or the watchdog's."""
    settings, place, vendor, ears = loaded.settings, loaded.place, loaded.vendor, loaded.ears
    limits = Limits(settings.stall_s, settings.deadline_s(given.audio_s))
    watchdog = Watchdog(limits, time.monotonic())
    meter = progress.Meter(given.frames, place.frames, place.works_in(task.code), place.results_of(task.code))
    call = Call(lambda: vendor.run(task), ears.nudge)
    while True:
        ended = call.ended  # asked before looking: what it did last is then seen
        for line in ears.wait(TICK_S):
            watchdog.hear(line)
            meter.hear(line)
        look = vendor.look(task.code)
        meter.look(look)
        meter.tell(job.progress)
        if look.status == FAILED:
            raise failures.of(look.message)
        if ended:
            call.result()
        if ended or look.status != RUNNING:
            return
        dead = vendor.dead()
        for line in ears.last_words() if dead else ():
            watchdog.hear(line)
        watchdog.check(meter.sign, dead, time.monotonic())
