"""A terminal that a program runs in: a real pty, and pyte's emulator, whose screen the test reads."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import pyte

from tests.support.wait import wait_for_sync

_DROPPED_VARIABLES = ("COLUMNS", "LINES", "NO_COLOR", "LAMPLIGHTER_")


class Terminal:
    """The screen of a program, and its keyboard."""

    def __init__(self, process: subprocess.Popen[bytes], keyboard: int, columns: int, lines: int) -> None:
        self.process, self._keyboard = process, keyboard
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # the program has ended, and nobody has the other end
            while written := os.read(self._keyboard, 65536):
                with self._lock:
                    self._stream.feed(written)

    @property
    def lines(self) -> list[str]:
        """What stands on the screen, without spaces at the end of lines."""
        with self._lock:
            return [line.rstrip() for line in self._screen.display]

    def press(self, keys: str) -> None:
        os.write(self._keyboard, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        with self._lock:
            self._screen.resize(lines, columns)
            self._screen.reset()
        _set_size(self._keyboard, columns, lines)
        self.process.send_signal(signal.SIGWINCH)

    def wait_until(self, condition: Callable[[list[str]], object]) -> list[str]:
        """Return the screen once `condition` holds for its lines."""

        def fits() -> list[str] | None:
            return lines if condition(lines := self.lines) else None

        try:
            return wait_for_sync(fits)
        except TimeoutError as error:
            raise AssertionError("the screen is:\n" + "\n".join(self.lines)) from error

    def wait_until_ended(self) -> int:
        return self.process.wait(30)


def _set_size(fd: int, columns: int, lines: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


@contextmanager
def open_terminal(argv: Sequence[str], columns: int, lines: int, **environ: str) -> Iterator[Terminal]:
    """Run a program in a terminal of this size until the block ends."""
    ours, theirs = pty.openpty()
    _set_size(theirs, columns, lines)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED_VARIABLES)}
    with subprocess.Popen(
        ["setsid", "--ctty", *argv],  # it execs the program; without a controlling terminal Ctrl-C would do nothing
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=inherited | {"TERM": "xterm-256color", "PYTHONUTF8": "1"} | environ,
    ) as process:
        os.close(theirs)
        terminal = Terminal(process, ours, columns, lines)
        try:
            yield terminal
        finally:
            process.kill()
            process.wait()
            terminal._reader.join(10)
            os.close(ours)
