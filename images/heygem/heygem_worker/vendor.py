"""The vendor as a port, and which of its generations is here.

Gen-1 (to about May 2025)   service.trans_dh_service.TransDhTask, one object that owns everything
Gen-2 (since)               the same module with functions a(), init_p() and a TransDhTask for each job
Server                      app_local.py over HTTP, for an image whose module is neither
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple, Protocol

RUNNING, SUCCEEDED, FAILED = 1, 2, 3  # the vendor's numbers


class VendorTask(NamedTuple):
    """One job for the vendor. `code` names its files and is part of its shell commands: letters and digits only."""

    code: str
    audio: Path
    video: Path
    pn: int
    chaofen: int
    watermark: int
    digital_auth: int


class VendorStatus(NamedTuple):
    """The vendor's status of a job: status, per cent, path of the video, and message."""

    status: int = RUNNING
    progress: int = 0
    result: str = ""
    message: str = ""


class Vendor(Protocol):
    """One loaded HeyGem. `name` goes into the job's data; `ready_lines` are log lines that show that it is loaded."""

    name: str
    ready_lines: tuple[str, ...]

    def start(self) -> None:
        """Load the models; return when everything slow has started."""

    def mark_ready(self) -> None:
        """Record that the vendor is ready: from now on its processes must not end."""

    def run(self, task: VendorTask) -> None:
        """Run one job; return when the vendor has finished, with or without success. May never return."""

    def status(self, code: str) -> VendorStatus:
        """Return the status of the job."""

    def find_dead(self) -> str:
        """Return which process of the vendor has died, or an empty text."""


def parse_status(entry: Any) -> VendorStatus:
    """Return the status from the vendor's `task_dic`: (status, per cent, result, message, …), or an empty one."""
    if not isinstance(entry, (tuple, list)) or len(entry) < 4:
        return VendorStatus()
    status, progress, result, message = entry[:4]
    number: Any = getattr(status, "value", status)  # an enum's, in both generations
    return VendorStatus(int(number), progress or 0, result or "", message or "")


def clear_argv() -> None:
    """Remove our arguments: the vendor parses sys.argv as its own options."""
    sys.argv = sys.argv[:1]
