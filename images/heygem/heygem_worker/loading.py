"""Load the vendor before the job: create the private folder, find the vendor, start it, wait until it is ready.

The vendor's log shows when it is ready. The vendor's own programs sleep for 10 or 15 s instead.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, TypeVar

from heygem_worker import (
    failures,
    frame_counter,
    http_vendor,
    interpreter,
    label,
    private_folder,
    queue_timeout,
    vendor_processes,
)
from heygem_worker.log_capture import LogCapture
from heygem_worker.module_vendors import MODULE, Gen1Vendor, Gen2Vendor
from heygem_worker.settings import WorkerSettings, job_folder
from heygem_worker.vendor import Vendor, clear_argv
from heygem_worker.vendor_call import VendorCall
from jobkit import JobError, TryAgain

T = TypeVar("T")

FOLDER = "heygem"  # inside the job's tmp/; the Dockerfile's links point there
POLL_INTERVAL_S = 0.2
GENERATIONS = (Gen2Vendor, Gen1Vendor)  # the newer one first: it also has the names that identify the older one


class ReadyLines:
    """Log lines that must appear, in any order. Each of `lines` is a part of a log line."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._missing = list(lines)

    def feed(self, said: Iterable[str]) -> None:
        """Remove the parts that appear in these log lines from `missing`."""
        for line in said:
            self._missing = [part for part in self._missing if part not in line]

    @property
    def missing(self) -> list[str]:
        """The parts that have not appeared yet; empty when the vendor is ready."""
        return self._missing


class LoadedVendor(NamedTuple):
    """A vendor that is loaded and ready for its only job."""

    settings: WorkerSettings
    folders: private_folder.WorkFolders
    log: LogCapture
    vendor: Vendor

    def close(self) -> None:
        """Kill all processes of the vendor, and pass on their last output."""
        _close(self.log)


def load() -> LoadedVendor:
    """Load the vendor. Raises JobError `model_load_failed`, TryAgain, GpuUnusable, and errors of the vendor's code."""
    settings = WorkerSettings.read()
    if wrong := interpreter.check_python_variable(os.environ):
        raise JobError("model_load_failed", wrong)
    ports = (http_vendor.free_port(), *filter(http_vendor.is_free, (private_folder.PORT,)))
    place = private_folder.make_folders(settings, job_folder() / "tmp" / FOLDER, ports[0])
    os.environ[frame_counter.COUNTER] = str(place.frames)
    os.chdir(place.root)
    label.check(settings)
    clear_argv()
    queue_timeout.lengthen_queue_timeout()
    ears = LogCapture(place.log)
    ears.open()
    try:
        wait = partial(_wait, ears, time.monotonic() + settings.load_s, settings.load_s)
        vendor = wait(VendorCall(partial(detect_vendor, place, settings, ports), ears.nudge), ReadyLines(()), str)
        wait(VendorCall(vendor.start, ears.nudge), ReadyLines(vendor.ready_lines), vendor.find_dead)
        vendor.mark_ready()
    except BaseException:
        _close(ears)
        raise
    return LoadedVendor(settings, place, ears, vendor)


def _close(ears: LogCapture) -> None:
    vendor_processes.kill_descendants()
    ears.close()


def _wait(  # noqa: PLR0913, PLR0917 - the first three are bound once
    ears: LogCapture, deadline: float, load_s: float, call: VendorCall[T], ready: ReadyLines, dead: Callable[[], str]
) -> T:
    """Return the call's result once it has ended and all ready lines have appeared. Raises what `load` raises.

    `deadline` is on the monotonic clock. `dead` names a process that has died, or returns an empty text.
    """
    clue = failures.DeathClue()
    while not call.is_done or ready.missing:
        died = dead()
        lines = ears.drain() if died else ears.wait(POLL_INTERVAL_S)
        ready.feed(lines)
        for line in lines:
            clue.feed(line)
            if failure := failures.find_fatal_failure(line):
                raise failure
        if call.is_done:
            call.result()  # raises its exception now, without waiting for the ready lines
        if died:
            raise TryAgain("model_load_failed", f"HeyGem: {died} while loading{clue}: see the job's log")
        if time.monotonic() > deadline:
            unsaid = ", ".join(ready.missing) or "anything"
            raise JobError(
                "model_load_failed", f"HeyGem was not ready after {load_s:.0f} s{clue}; it did not say: {unsaid}"
            )
    return call.result()


def detect_vendor(place: private_folder.WorkFolders, settings: WorkerSettings, ports: tuple[int, ...]) -> Vendor:
    """Return this image's HeyGem. Raises JobError if the image has no HeyGem, and what the vendor's import raises."""
    module = None if settings.mode == "http" else _import_module(str(place.root))
    for generation in GENERATIONS:
        if module is not None and generation.fits(module):
            return generation(module)
    if (place.home / http_vendor.PROGRAM).exists():
        return http_vendor.HttpVendor(place.home, place.root, ports)
    raise JobError("model_load_failed", f"no HeyGem in {place.home}: build on the vendor's image, see README.md")


def _import_module(folder: str) -> Any:
    """Return the vendor's module; None if this Python cannot import it. The log then has the reason."""
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(MODULE)
    except ImportError:
        traceback.print_exc()
        return None
