"""Read the vendor's output line by line: stdout and stderr of the vendor and its children, and its log files.

All lines still go to the job's log. The vendor's logger writes each line to stderr and to a file, with milliseconds in
only one of the two. Such a line is passed on once, from the source that has it first.
"""

from __future__ import annotations

import collections
import os
import re
import sys
import threading
from pathlib import Path

MAX_LINE = 65_536  # bytes
LINES_LIMIT = 10_000  # unread lines that are kept: a warm worker may wait for its job for hours
RECENT = 500  # last lines of one source that a line of the other is compared with
TIMESTAMP_PATTERN = re.compile(rb"^\[?\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d+)?\]?[ -]*")
READ = 65_536
LAST_LINES_TIMEOUT_S = 0.2  # `drain` ends after this time without a line
MANY = 1_000  # `drain` also ends after this many lines: other processes may continue to write
END = b"lamplighter: that was all\n"


class LogCapture:
    """Captures file descriptors 1 and 2 between `open` and `close`."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._lines: collections.deque[str] = collections.deque(maxlen=LINES_LIMIT)
        self._streamed: collections.deque[bytes] = collections.deque(maxlen=RECENT)
        self._filed: collections.deque[bytes] = collections.deque(maxlen=RECENT)
        self._news = threading.Condition()
        self._nudged = False
        self._files: dict[Path, _LogTail] = {}
        self._kept: tuple[int, int] | None = None
        self._reader = threading.Thread(target=self._read, name="hearing", daemon=True)

    def open(self) -> None:
        """Redirect file descriptors 1 and 2 into a pipe, and start the thread that reads it."""
        self._flush()
        self._in, out = os.pipe()
        self._kept = (os.dup(1), os.dup(2))
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.close(out)
        self._reader.start()

    def close(self) -> None:
        """Restore the descriptors after all output so far has been passed on."""
        if self._kept is None:
            return
        self._flush()
        self._read_files()
        os.write(2, b"\n" + END)
        self._reader.join()
        for descriptor, kept in enumerate(self._kept, 1):
            os.dup2(kept, descriptor)
            os.close(kept)
        self._kept = None
        os.close(self._in)

    def nudge(self) -> None:
        """Wake the thread in `wait` for a reason other than a line, such as the end of a call."""
        with self._news:
            self._nudged = True
            self._news.notify()

    def wait(self, seconds: float) -> list[str]:
        """Return the lines since the last call. Wait up to `seconds` for a line or a nudge."""
        with self._news:
            self._news.wait_for(lambda: self._lines or self._nudged, seconds)
            self._nudged = False
        self._read_files()
        with self._news:
            lines = list(self._lines)
            self._lines.clear()
        return lines

    def drain(self) -> list[str]:
        """Return the last lines of a process that has died. They may still be in the pipe, so wait for them."""
        said: list[str] = []
        while len(said) < MANY and (more := self.wait(LAST_LINES_TIMEOUT_S)):
            said += more
        return said

    @staticmethod
    def _flush() -> None:
        sys.stdout.flush()
        sys.stderr.flush()

    def _read(self) -> None:
        part = b""
        while True:
            *lines, part = (part + os.read(self._in, READ)).split(b"\n")
            for line in lines:
                if line + b"\n" == END:
                    return
                self._pass_on_once(line, self._streamed, self._filed)
            if len(part) > MAX_LINE:
                self._pass_on(part)
                part = b""

    def _pass_on_once(self, line: bytes, own: collections.deque[bytes], others: collections.deque[bytes]) -> None:
        """Pass `line` on unless the other source already has. Each line of one source cancels one of the other."""
        text = TIMESTAMP_PATTERN.sub(b"", line.strip())
        with self._news:
            if known := text in others:
                others.remove(text)
            else:
                own.append(text)
        if not known:
            self._pass_on(line)

    def _pass_on(self, line: bytes) -> None:
        if self._kept is not None and line.strip():
            os.write(self._kept[1], line + b"\n")
        with self._news:
            self._lines.append(line.decode("utf-8", "replace"))
            self._news.notify()

    def _read_files(self) -> None:
        for path in self._logs.rglob("*.log*"):
            tail = self._files.setdefault(path, _LogTail(path))
            for line in tail.lines():
                self._pass_on_once(line, self._filed, self._streamed)


class _LogTail:
    """Reads the lines that are appended to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._part = b""

    def lines(self) -> list[bytes]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                data = file.read(READ * 16)
        except OSError:  # rotated away
            return []
        self._at += len(data)
        *lines, self._part = (self._part + data).split(b"\n")
        return lines
