"""The processes that the vendor starts: which of them have died, and the end of all of them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path


class Children:
    """Those that the vendor's module starts in our own process, by `multiprocessing`."""

    def __init__(self) -> None:
        self._seen: set[BaseProcess] = set()
        self._standing: set[BaseProcess] = set()

    def settle(self) -> None:
        """The model is loaded: who is here now must stay. Others come and go with a job."""
        self._standing = set(multiprocessing.active_children())

    def dead(self) -> str:
        """Who has died and how, or nothing. One that nobody misses may end with 0."""
        self._seen.update(multiprocessing.active_children())
        for process in self._seen:
            code = process.exitcode
            if code is not None and (code != 0 or process in self._standing):
                return f"{process.name} {_ended(code)}"
        return ""


class Descendants:
    """Those of a server that we started: any that was there when it was ready must stay."""

    def __init__(self, server: int) -> None:
        self._server = server
        self._standing: set[int] = set()

    def settle(self) -> None:
        self._standing = {self._server, *descendants(self._server)}

    def dead(self) -> str:
        gone = self._standing - {self._server, *descendants(self._server)}
        return f"process {min(gone)} of the server has ended" if gone else ""


def descendants(ancestor: int) -> set[int]:
    """Every living process below `ancestor`. Source: proc(5), /proc/pid/stat, fields 3 and 4."""
    parents = dict(_parents())
    found: set[int] = set()
    fresh = {ancestor}
    while fresh:
        fresh = {pid for pid, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def _parents() -> Iterable[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    yield int(entry.name), int(parent)


def end() -> None:
    """Kill all that we and the vendor started."""
    for pid in descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _ended(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
