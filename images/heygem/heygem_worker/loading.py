"""Before the job: lay out the private folder, find out which HeyGem this is, start it, wait until it says ready."""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

from heygem_worker import config, failures, family, http, interpreter, label, patience, writer
from heygem_worker.calling import Call
from heygem_worker.generations import MODULE, First, Second
from heygem_worker.hearing import Ears
from heygem_worker.readiness import Readiness
from heygem_worker.settings import Settings, job_folder
from heygem_worker.vendor import Vendor, quiet_arguments
from jobkit import JobError, TryAgain

T = TypeVar("T")

FOLDER = "heygem"  # inside the job's tmp/; the Dockerfile's links lead there
TICK_S = 0.2
GENERATIONS = (Second, First)  # the newer first: it has all that the older is known by


class Loaded(NamedTuple):
    """A vendor that is ready for its one job."""

    settings: Settings
    place: config.Place
    ears: Ears
    vendor: Vendor

    def close(self) -> None:
        """End all of its processes, and let their last words through."""
        _close(self.ears)


def load() -> Loaded:
    """Raises JobError `model_load_failed`, TryAgain, GpuUnusable; anything of the vendor's own."""
    settings = Settings.read()
    if wrong := interpreter.unusable(os.environ):
        raise JobError("model_load_failed", wrong)
    ports = (http.free_port(), *filter(http.is_free, (config.PORT,)))
    place = config.make(settings, job_folder() / "tmp" / FOLDER, ports[0])
    os.environ[writer.COUNTER] = str(place.frames)
    os.chdir(place.root)
    label.check(settings)
    quiet_arguments()
    patience.stretch()
    ears = Ears(place.log)
    ears.open()
    try:
        wait = partial(_wait, ears, time.monotonic() + settings.load_s, settings.load_s)
        vendor = wait(Call(partial(find, place, settings, ports), ears.nudge), Readiness(()), str)
        wait(Call(vendor.start, ears.nudge), Readiness(vendor.ready), vendor.dead)
        vendor.settle()
    except BaseException:
        _close(ears)
        raise
    return Loaded(settings, place, ears, vendor)


def _close(ears: Ears) -> None:
    family.end()
    ears.close()


def _wait(  # noqa: PLR0913, PLR0917 - the first three are bound once
    ears: Ears, deadline: float, load_s: float, call: Call[T], ready: Readiness, dead: Callable[[], str]
) -> T:
    """Until the call has ended and all lines were said; `deadline` is on the monotonic clock."""
    clue = failures.Clue()
    while not call.ended or ready.missing:
        died = dead()
        lines = ears.last_words() if died else ears.wait(TICK_S)
        ready.hear(lines)
        for line in lines:
            clue.hear(line)
            if failure := failures.at_once(line):
                raise failure
        if call.ended:
            call.result()  # raises now what it raised
        if died:
            raise TryAgain("model_load_failed", f"HeyGem: {died} while loading{clue}: see the job's log")
        if time.monotonic() > deadline:
            unsaid = ", ".join(ready.missing) or "anything"
            raise JobError(
                "model_load_failed", f"HeyGem was not ready after {load_s:.0f} s{clue}; it did not say: {unsaid}"
            )
    return call.result()


def find(place: config.Place, settings: Settings, ports: tuple[int, ...]) -> Vendor:
    """Which HeyGem this is. Raises JobError where it is none; what the vendor's import raises."""
    module = None if settings.mode == "http" else _imported(str(place.root))
    for generation in GENERATIONS:
        if module is not None and generation.fits(module):
            return generation(module)
    if (place.home / http.PROGRAM).exists():
        return http.Server(place.home, place.root, ports)
    raise JobError("model_load_failed", f"no HeyGem in {place.home}: build on the vendor's image, see README.md")


def _imported(folder: str) -> Any:
    """The vendor's module, or None where there is none for this Python; the log then says why."""
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(MODULE)
    except ImportError:
        traceback.print_exc()
        return None
