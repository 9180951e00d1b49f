"""Fault points at the ports: a real process stands still exactly before or after a named call, for the test to act.

A test arms a point by making a file of its name. The process that gets there renames the file, so that it happens once,
and stops itself with SIGSTOP: every thread of it, in the middle of the call. The test sees it standing, kills it, or
kills somebody else and lets it go on. Nothing of ours knows of any of this: the entry points (entry_edge.py,
entry_runner.py) put it around the ports of the process that they start.
"""

import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Call = Callable[..., Awaitable[T]]

FOLDER_ENV = "CHAOS_FAULTS"
REACHED_SUFFIX = ".reached"

Label = Callable[..., str]  # of the call's arguments: what of it is meant


class CallSide(StrEnum):
    """On which side of the call."""

    BEFORE = "before"
    AFTER = "after"


def no_label(*_: object, **__: object) -> str:
    """The call, whatever it is about."""
    return ""


class FaultPoints:
    """The points of one process; their files lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def of_this_process(cls) -> "FaultPoints":
        """As the test that started this process says."""
        return cls(Path(os.environ[FOLDER_ENV]))

    def reach(self, point: str, moment: CallSide) -> None:
        """Stand still here if the test wants it; goes on when it says so."""
        armed = self._folder / f"{point}.{moment}"
        try:
            armed.rename(armed.with_name(armed.name + REACHED_SUFFIX))
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGSTOP)

    def around(
        self, point: str, call: Callable[..., Awaitable[T]], label: Label = no_label
    ) -> Callable[..., Awaitable[T]]:
        """`call` with a fault point on both sides."""

        async def armed(*args: Any, **named: Any) -> T:
            about = label(*args, **named)
            name = f"{point}.{about}" if about else point
            self.reach(name, CallSide.BEFORE)
            result = await call(*args, **named)
            self.reach(name, CallSide.AFTER)
            return result

        return armed

    def over(self, port: object, name: str, methods: Mapping[str, Label]) -> None:
        """Put points around `methods` of an object that stands behind a port. It stays what it is: no class changes."""
        for method, label in methods.items():
            setattr(port, method, self.around(f"{name}.{method}", getattr(port, method), label))

    def arm(self, point: str, moment: CallSide) -> None:
        """The next time that somebody gets there."""
        (self._folder / f"{point}.{moment}").touch()

    def disarm(self) -> None:
        """Nobody is to stand still any more."""
        for path in self._folder.iterdir():
            path.unlink()

    def reached(self, point: str, moment: CallSide, pid: int) -> bool:
        """Whether the process `pid` stands there."""
        return (self._folder / f"{point}.{moment}{REACHED_SUFFIX}").exists() and is_stopped(pid)


def is_stopped(pid: int) -> bool:
    """Whether the process is stopped, by proc(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except FileNotFoundError:
        return False
