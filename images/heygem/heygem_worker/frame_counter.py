"""Count the frames that Gen-1 writes, by a wrapper around the vendor's function that writes them.

That function runs in a spawned child process, so the wrapper is at module level, and it counts in a file: one byte for
each frame.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

MODULE = "service.trans_dh_service"
NAME = "write_video"
ORIGINAL = "write_video_of_the_vendor"  # where the module keeps its own function
COUNTER = "HEYGEM_FRAMES"  # environment: the file to count in


def count_frames_of(module: Any) -> None:
    """Replace the module's `write_video` by the wrapper, if it has one."""
    if hasattr(module, NAME) and not hasattr(module, ORIGINAL):
        setattr(module, ORIGINAL, getattr(module, NAME))
        setattr(module, NAME, write_video)


def write_video(frames: Any, *rest: Any, **named: Any) -> Any:
    """Call the vendor's function with a queue that counts.

    In a spawned child the vendor's module is new, and NAME is its own function again. In a forked child NAME is this
    function, which would call itself without end; there ORIGINAL is set.
    """
    module = importlib.import_module(MODULE)
    original = getattr(module, ORIGINAL, None) or getattr(module, NAME)
    return original(CountedQueue(frames, os.environ[COUNTER]), *rest, **named)


class CountedQueue:
    """A queue of (state, reason, frames), where a `state` that is a bool ends it."""

    def __init__(self, frames: Any, counter: str) -> None:
        self._frames = frames
        self._counter = os.open(counter, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def get(self, *args: Any, **named: Any) -> Any:
        """As a queue's."""
        item = self._frames.get(*args, **named)
        state, _, batch = item
        if not isinstance(state, bool) and batch is not None:
            os.write(self._counter, b"." * len(batch))
        return item

    def __getattr__(self, name: str) -> Any:
        return getattr(self._frames, name)
