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
    """One job in the vendor's words. `code` names its files and comes into its shell commands: letters and digits."""

    code: str
    audio: Path
    video: Path
    pn: int
    chaofen: int
    watermark: int
    digital_auth: int


class VendorStatus(NamedTuple):
    """What the vendor says of a job: status, per cent, where the video is, and its message."""

    status: int = RUNNING
    progress: int = 0
    result: str = ""
    message: str = ""


class Vendor(Protocol):
    """One loaded HeyGem. `name` for the job's data; `ready`: the parts of log lines that say it is loaded."""

    name: str
    ready_lines: tuple[str, ...]

    def start(self) -> None:
        """Load the models; returns when all that takes long has been begun."""

    def mark_ready(self) -> None:
        """It is ready: its processes now must stay."""

    def run(self, task: VendorTask) -> None:
        """One job; returns when the vendor is through with it, however it went. May hang for ever."""

    def status(self, code: str) -> VendorStatus:
        """What it says of the job now."""

    def find_dead(self) -> str:
        """Which of its processes has died, or nothing."""


def parse_status(entry: Any) -> VendorStatus:
    """A record of the vendor's `task_dic`: (status, per cent, result, message, …), or nothing yet."""
    if not isinstance(entry, (tuple, list)) or len(entry) < 4:
        return VendorStatus()
    status, progress, result, message = entry[:4]
    number: Any = getattr(status, "value", status)  # an enum's, in both generations
    return VendorStatus(int(number), progress or 0, result or "", message or "")


def clear_argv() -> None:
    """The vendor parses sys.argv as its own options."""
    sys.argv = sys.argv[:1]
