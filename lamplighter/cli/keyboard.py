"""Keys from a terminal, one by one and without Enter."""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

try:
    import termios
    import tty
except ImportError:  # Windows
    HAS_KEYS = False
else:
    HAS_KEYS = True

# What terminals send (xterm's control sequences), also in application mode.
_SEQUENCES = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"\x1b[5~": "page_up",
    b"\x1b[6~": "page_down",
    b"\x1b[H": "home",
    b"\x1b[F": "end",
    b"\x1b": "escape",
    b"\r": "enter",
    b"\n": "enter",
}
_READ_BYTES = 1024


@contextmanager
def keys_from_terminal() -> Iterator[bool]:
    """Let `read_keys` get each key at once, and hide it. Yield whether stdin is a terminal that can do that.

    Ctrl-C still interrupts. The terminal is as before at the end.
    """
    if not HAS_KEYS or not sys.stdin.isatty():
        yield False
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield True
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def read_keys(timeout_s: float) -> list[str]:
    """Return the keys that were pressed, at the latest after `timeout_s`: a character, or a name such as `up`.

    Raises EOFError when the terminal is gone.
    """
    fd = sys.stdin.fileno()
    ready, _, _ = select.select([fd], [], [], timeout_s)
    if not ready:
        return []
    pressed = os.read(fd, _READ_BYTES)
    if not pressed:
        raise EOFError
    return split_keys(pressed)


def split_keys(pressed: bytes) -> list[str]:
    """Return the keys in what a terminal sent. Keys that have no name here are left out."""
    keys = []
    while pressed:
        sequence = max((known for known in _SEQUENCES if pressed.startswith(known)), key=len, default=pressed[:1])
        if sequence in _SEQUENCES:
            keys.append(_SEQUENCES[sequence])
        elif 0x20 < sequence[0] < 0x7F:
            keys.append(sequence.decode())
        pressed = pressed[len(sequence) :]
    return keys
