"""The port to the vendor's code. It has three adapters, one for each interface of the vendor.

Gen-1 (until about May 2025)   service.trans_dh_service.TransDhTask, one object that owns everything
Gen-2 (since then)             the same module with functions a(), init_p() and a TransDhTask for each job
Server                         app_local.py over HTTP, for an image whose module is neither
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple, Protocol

RUNNING, SUCCEEDED, FAILED = 1, 2, 3  # the vendor's numbers


class VendorTask(NamedTuple):
    """One job for the vendor. `code` may contain only a-z, A-Z and 0-9: file names and shell commands contain it."""

    code: str
    audio: Path
    video: Path
    pn: int
    chaofen: int
    watermark: int
    digital_auth: int


class VendorStatus(NamedTuple):
    """The vendor's status of a job. `progress` is in per cent; `result` is the path of the video."""

    status: int = RUNNING
    progress: int = 0
    result: str = ""
    message: str = ""


class Vendor(Protocol):
    """One HeyGem. `name` goes into the job's data; `ready_lines` are the log lines that show that it is loaded."""

    name: str
    ready_lines: tuple[str, ...]

    def start(self) -> None:
        """Start loading the models. The vendor is loaded once this has returned and all `ready_lines` have appeared."""

    def mark_ready(self) -> None:
        """Record that the vendor is ready. From now on the end of one of its processes is a failure."""

    def run(self, task: VendorTask) -> None:
        """Run one job; return when the vendor has finished, with or without success. May never return."""

    def status(self, code: str) -> VendorStatus:
        """Return the vendor's current status of the job `code`; RUNNING if the vendor has no record of it."""

    def find_dead(self) -> str:
        """Return which process of the vendor has died and how, or an empty text."""


def parse_status(entry: Any) -> VendorStatus:
    """Return the status from an entry of `task_dic`: (status, per cent, result, message, …). RUNNING if malformed."""
    if not isinstance(entry, (tuple, list)) or len(entry) < 4:
        return VendorStatus()
    status, progress, result, message = entry[:4]
    number: Any = getattr(status, "value", status)  # the status is an enum in both generations
    return VendorStatus(int(number), progress or 0, result or "", message or "")


def clear_argv() -> None:
    """Remove our arguments from sys.argv, which the vendor parses as its own options."""
    sys.argv = sys.argv[:1]
