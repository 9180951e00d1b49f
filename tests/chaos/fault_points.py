"""Fault points at the ports: a real process stops exactly before or after a named call, so that the test can act.

A test arms a point by creating a file of its name. The process that reaches the point renames the file, so that it
happens once, and stops itself with SIGSTOP, in the middle of the call and with all its threads. The test sees that it
has stopped, and kills it, or kills another process and lets this one continue.

No code of ours depends on fault points. The entry points (entry_edge.py, entry_runner.py) put them around the ports of
the process that they start.
"""

import os
import signal
import threading
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Call = Callable[..., Awaitable[T]]

FOLDER_ENV = "CHAOS_FAULTS"
REACHED_SUFFIX = ".reached"

Label = Callable[..., str]  # from the call's arguments: a word that is added to the point's name


class CallSide(StrEnum):
    """The side of the call at which the process stops."""

    BEFORE = "before"
    AFTER = "after"


def no_label(*_: object, **__: object) -> str:
    """Label a call whose arguments do not matter."""
    return ""


class FaultPoints:
    """The fault points of one process; their files lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def of_this_process(cls) -> "FaultPoints":
        """Return the points of this process, which the test that started it has set."""
        return cls(Path(os.environ[FOLDER_ENV]))

    def reach(self, point: str, moment: CallSide) -> None:
        """Stop here if the point is armed; return when the test lets the process continue."""
        armed = self._folder / f"{point}.{moment}"
        try:
            armed.rename(armed.with_name(armed.name + REACHED_SUFFIX))
        except FileNotFoundError:
            return
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # os.kill may stop it after the next lines

    def around(
        self, point: str, call: Callable[..., Awaitable[T]], label: Label = no_label
    ) -> Callable[..., Awaitable[T]]:
        """Return `call` with a fault point on both sides."""

        async def armed(*args: Any, **named: Any) -> T:
            about = label(*args, **named)
            name = f"{point}.{about}" if about else point
            self.reach(name, CallSide.BEFORE)
            result = await call(*args, **named)
            self.reach(name, CallSide.AFTER)
            return result

        return armed

    def over(self, port: object, name: str, methods: Mapping[str, Label]) -> None:
        """Put points around `methods` of an object behind a port; its class does not change."""
        for method, label in methods.items():
            setattr(port, method, self.around(f"{name}.{method}", getattr(port, method), label))

    def over_blocking(self, port: object, name: str, methods: Mapping[str, Label]) -> None:
        """Put points around `methods` that block. A stop stops all threads of the process."""
        for method, label in methods.items():
            setattr(port, method, self._around_blocking(f"{name}.{method}", getattr(port, method), label))

    def _around_blocking(self, point: str, call: Callable[..., T], label: Label) -> Callable[..., T]:
        def armed(*args: Any, **named: Any) -> T:
            about = label(*args, **named)
            name = f"{point}.{about}" if about else point
            self.reach(name, CallSide.BEFORE)
            result = call(*args, **named)
            self.reach(name, CallSide.AFTER)
            return result

        return armed

    def arm(self, point: str, moment: CallSide) -> None:
        """Stop the process the next time that it reaches the point."""
        (self._folder / f"{point}.{moment}").touch()

    def disarm(self) -> None:
        """Disarm all points."""
        for path in self._folder.iterdir():
            path.unlink()

    def reached(self, point: str, moment: CallSide, pid: int) -> bool:
        """Return whether the process `pid` has stopped there."""
        return (self._folder / f"{point}.{moment}{REACHED_SUFFIX}").exists() and is_stopped(pid)


def is_stopped(pid: int) -> bool:
    """Return whether the process is stopped, by proc(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except FileNotFoundError:
        return False
