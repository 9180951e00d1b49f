"""Count the frames that Gen-1 writes, with a wrapper around the vendor's function that writes them.

That function runs in a spawned child process. So the wrapper is a module-level function, which can be pickled, and it
counts in a file: one byte for each frame.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

MODULE = "service.trans_dh_service"
NAME = "write_video"
ORIGINAL = "write_video_of_the_vendor"  # the attribute that keeps the module's own function
COUNTER = "HEYGEM_FRAMES"  # environment variable: the path of the file that counts


def count_frames_of(module: Any) -> None:
    """Replace the module's `write_video`, if it has one, with the wrapper."""
    if hasattr(module, NAME) and not hasattr(module, ORIGINAL):
        setattr(module, ORIGINAL, getattr(module, NAME))
        setattr(module, NAME, write_video)


def write_video(frames: Any, *rest: Any, **named: Any) -> Any:
    """Call the vendor's function with a queue that counts the frames taken from it.

    A spawned child imports the vendor's module again, so NAME is the vendor's function there. In a forked child NAME is
    this function, and calling it would recurse without end; ORIGINAL is set there.
    """
    module = importlib.import_module(MODULE)
    original = getattr(module, ORIGINAL, None) or getattr(module, NAME)
    return original(CountedQueue(frames, os.environ[COUNTER]), *rest, **named)


class CountedQueue:
    """A queue of (state, reason, frames). An item whose `state` is a bool ends the queue and holds no frames."""

    def __init__(self, frames: Any, counter: str) -> None:
        self._frames = frames
        self._counter = os.open(counter, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def get(self, *args: Any, **named: Any) -> Any:
        """Return the next item, as a queue does, after counting its frames."""
        item = self._frames.get(*args, **named)
        state, _, batch = item
        if not isinstance(state, bool) and batch is not None:
            os.write(self._counter, b"." * len(batch))
        return item

    def __getattr__(self, name: str) -> Any:
        return getattr(self._frames, name)
