"""The processes that the vendor starts: which of them have died, and killing all of them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path


class ChildProcesses:
    """Those that the vendor's module starts in our own process, by `multiprocessing`."""

    def __init__(self) -> None:
        self._seen: set[BaseProcess] = set()
        self._required: set[BaseProcess] = set()

    def mark_ready(self) -> None:
        """The model is loaded: who is here now must stay. Others come and go with a job."""
        self._required = set(multiprocessing.active_children())

    def find_dead(self) -> str:
        """Who has died and how, or nothing. One that nobody misses may end with 0."""
        self._seen.update(multiprocessing.active_children())
        for process in self._seen:
            code = process.exitcode
            if code is not None and (code != 0 or process in self._required):
                return f"{process.name} {_describe_exit(code)}"
        return ""


class DescendantProcesses:
    """Those of a server that we started: any that was there when it was ready must stay."""

    def __init__(self, server: int) -> None:
        self._server = server
        self._required: set[int] = set()

    def mark_ready(self) -> None:
        self._required = {self._server, *list_descendants(self._server)}

    def find_dead(self) -> str:
        gone = self._required - {self._server, *list_descendants(self._server)}
        return f"process {min(gone)} of the server has ended" if gone else ""


def list_descendants(ancestor: int) -> set[int]:
    """Every living process below `ancestor`. Source: proc(5), /proc/pid/stat, fields 3 and 4."""
    parents = dict(_list_parents())
    found: set[int] = set()
    fresh = {ancestor}
    while fresh:
        fresh = {pid for pid, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def _list_parents() -> Iterable[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    yield int(entry.name), int(parent)


def kill_descendants() -> None:
    """Kill all that we and the vendor started."""
    for pid in list_descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _describe_exit(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
