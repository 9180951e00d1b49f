"""Find out which of the vendor's processes have died, and kill all of them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path


class ChildProcesses:
    """The children of our own process that the vendor's module starts with `multiprocessing`."""

    def __init__(self) -> None:
        self._seen: set[BaseProcess] = set()
        self._required: set[BaseProcess] = set()

    def mark_ready(self) -> None:
        """Require the children that run now, after loading, to keep running. Later ones come and go with a job."""
        self._required = set(multiprocessing.active_children())

    def find_dead(self) -> str:
        """Return which child has died and how, or an empty text. A child that is not required may exit with code 0."""
        self._seen.update(multiprocessing.active_children())
        for process in self._seen:
            code = process.exitcode
            if code is not None and (code != 0 or process in self._required):
                return f"{process.name} {_describe_exit(code)}"
        return ""


class DescendantProcesses:
    """The processes of a server that we started. Those that run when it is ready must keep running."""

    def __init__(self, server: int) -> None:
        self._server = server
        self._required: set[int] = set()

    def mark_ready(self) -> None:
        self._required = {self._server, *list_descendants(self._server)}

    def find_dead(self) -> str:
        gone = self._required - {self._server, *list_descendants(self._server)}
        return f"process {min(gone)} of the server has ended" if gone else ""


def list_descendants(ancestor: int) -> set[int]:
    """Return the pids of all living descendants of `ancestor`. Source: proc(5), /proc/pid/stat, fields 3 and 4."""
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
    """Kill all processes that we or the vendor started, with SIGKILL."""
    for pid in list_descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _describe_exit(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
