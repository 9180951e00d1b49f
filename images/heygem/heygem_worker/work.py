"""Run one job step by step: prepare the inputs, run the vendor under supervision, check the video, hand it over."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from heygem_worker import failures, inputs, label, media_tools, progress, result
from heygem_worker.loading import POLL_INTERVAL_S, LoadedVendor, load
from heygem_worker.vendor import FAILED, RUNNING, VendorTask
from heygem_worker.vendor_call import VendorCall
from heygem_worker.watchdog import Watchdog, WatchdogLimits
from jobkit import Job

__all__ = ["load", "work"]

SWITCHES = {"pn": 1, "chaofen": 0, "watermark": 0, "digital_auth": 0}  # the job's switches and their defaults


def work(job: Job, loaded: LoadedVendor) -> dict[str, Any]:
    """Write result.mp4 and return its properties. Raises jobkit's errors with the codes of failures.py."""
    try:
        return _run_job(job, loaded)
    finally:
        loaded.close()


def _run_job(job: Job, loaded: LoadedVendor) -> dict[str, Any]:
    began = time.monotonic()
    tools, place = media_tools.choose_tools(), loaded.folders
    switches = {name: int(job.input.get(name, default)) for name, default in SWITCHES.items()}
    label.check_vendor_marks(switches, place)
    tell, longest_s = progress.preparation_progress(job.progress), loaded.settings.max_audio_s
    files = inputs.JobFiles(job.path("video"), job.path("audio"))
    given = inputs.prepare(files, place.inputs, tools, longest_s, tell)
    task = VendorTask(_task_code(job), given.audio, given.video, **switches)
    _supervise(job, loaded, task, given)
    job.progress(progress.CHECK.begins, progress.CHECK.name)
    video = result.find(place.result_paths(task.code))
    picture = result.check(video, tools, given)
    if loaded.settings.label:
        video, made = place.labelled, video
        label.burn(made, video, picture.seconds, progress.label_progress(job.progress, picture.seconds))
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


def _task_code(job: Job) -> str:
    """Return a code that differs for each attempt and is safe in file names and shell commands."""
    return "job" + hashlib.sha256(f"{job.id}/{job.round}/{job.attempt}".encode()).hexdigest()[:16]


def _supervise(job: Job, loaded: LoadedVendor, task: VendorTask, given: inputs.PreparedInputs) -> None:
    """Wait until the vendor has finished. Raises its failure, or the watchdog's."""
    settings, place, vendor, ears = loaded.settings, loaded.folders, loaded.vendor, loaded.log
    limits = WatchdogLimits(settings.stall_s, settings.deadline_s(given.audio_s))
    watchdog = Watchdog(limits, time.monotonic())
    meter = progress.ProgressMeter(
        given.frames, place.frames, place.work_folders(task.code), place.result_paths(task.code)
    )
    call = VendorCall(lambda: vendor.run(task), ears.nudge)
    while True:
        ended = call.is_done  # read before the log and the status, so that they include the call's last output
        for line in ears.wait(POLL_INTERVAL_S):
            watchdog.feed(line)
            meter.feed(line)
        look = vendor.status(task.code)
        meter.update(look)
        meter.report(job.progress)
        if look.status == FAILED:
            raise failures.classify_text(look.message)
        if ended:
            call.result()
        if ended or look.status != RUNNING:
            return
        dead = vendor.find_dead()
        for line in ears.drain() if dead else ():
            watchdog.feed(line)
        watchdog.check(meter.activity, dead, time.monotonic())
