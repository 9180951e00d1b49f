"""What a Docker daemon's replies mean in our words. Pure; the measured facts behind it: research/runner.md 1.4, 1.5."""

import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from runner.engines.port import EngineInfo, Exit, Found, StartFailure, State
from runner.engines.sandbox import identity_of

NEVER = "0001-01-01"  # how the daemon writes a time that has not come

_NUMBERS = re.compile(r"(\d+)\.(\d+)\.(\d+)", re.ASCII)

STATES: Mapping[str, State] = {"created": "created", "exited": "exited", "dead": "exited", "removing": "exited"}

# Parts of the text of a failed create or start; the rest is engine_error.
START_FAILURES: tuple[tuple[str, StartFailure], ...] = (
    ("no such image", "image_missing"),
    ("could not select device driver", "gpu_unsupported"),
    ("unknown runtime specified", "gpu_unsupported"),
    ("unresolvable cdi devices", "gpu_unsupported"),
    ("cdi device injection failed", "gpu_unsupported"),
    ("nvidia-container", "gpu_unsupported"),
)

# What `info` may lack, and what that costs.
LACKING = {
    "LiveRestoreEnabled": "the daemon ends containers when it restarts: set live-restore",
    "MemoryLimit": "the kernel keeps no memory limit",
    "SwapLimit": "the kernel keeps no limit on swap",
    "PidsLimit": "the kernel keeps no limit on processes",
}


OLDEST = (20, 10, 10)  # the first that passes an errno of our profile on (clone3); before, no thread would start
SECCOMP = "name=seccomp"


def takes_profile(info: Mapping[str, Any]) -> bool:
    """Whether the daemon can run containers under our own seccomp profile."""
    return _filters(info) and _version(info) >= OLDEST


def _filters(info: Mapping[str, Any]) -> bool:
    return any(option.startswith(SECCOMP) for option in info.get("SecurityOptions") or ())


def _version(info: Mapping[str, Any]) -> tuple[int, ...]:
    """Of the daemon, as three numbers; of one that says something else, the newest."""
    found = _NUMBERS.match(info["ServerVersion"])
    return tuple(map(int, found.groups())) if found else (sys.maxsize,)


def _unfiltered(info: Mapping[str, Any]) -> tuple[str, ...]:
    """What is missing of the filter of system calls."""
    if not _filters(info):
        return ("the daemon filters no system calls (no seccomp): a job may attack the kernel; use one that does",)
    if _version(info) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return (f"the daemon is older than {oldest} and filters system calls by its own profile: update it",)
    return ()


def start_failure(text: str) -> StartFailure:
    """Why a container did not start."""
    return next((code for part, code in START_FAILURES if part in text.lower()), "engine_error")


def was_started(state: Mapping[str, Any]) -> bool:
    """Whether it ever ran. `wait` on one that did not answers 0 at once: never trust that."""
    return not state["StartedAt"].startswith(NEVER)


def exit_of(state: Mapping[str, Any]) -> Exit:
    """How it ended. OOMKilled counts whatever the code is: a parent may hide its child's death behind a 0."""
    return Exit(state["ExitCode"], state["OOMKilled"], _time(state["StartedAt"]), _time(state["FinishedAt"]))


def found(row: Mapping[str, Any]) -> Found:
    """A row of the container list."""
    return Found(row["Id"], identity_of(row["Labels"]), STATES.get(row["State"], "running"))


def engine_info(info: Mapping[str, Any]) -> EngineInfo:
    """The daemon's word about itself."""
    notes = *(note for name, note in LACKING.items() if not info.get(name)), *_unfiltered(info)
    return EngineInfo("docker", info["ServerVersion"], isolated=True, notes=notes)


def _time(text: str) -> datetime | None:
    return None if text.startswith(NEVER) else datetime.fromisoformat(text).astimezone(UTC)
