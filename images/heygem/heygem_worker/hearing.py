"""What the vendor says: stdout and stderr of it and its children, and its log files, line by line.

Everything still goes to the job's log. A file's line that came by a stream already is not logged twice.
"""

from __future__ import annotations

import collections
import os
import sys
import threading
from pathlib import Path

MAX_LINE = 65_536  # bytes
KEPT = 10_000  # lines waiting to be looked at: a warm worker may wait for its job for hours
RECENT = 500  # lines among which a file's line is looked for
READ = 65_536
END = b"lamplighter: that was all\n"


class Ears:
    """Takes over descriptors 1 and 2 from `open` to `close`."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._heard: collections.deque[str] = collections.deque(maxlen=KEPT)
        self._recent: collections.deque[bytes] = collections.deque(maxlen=RECENT)
        self._news = threading.Condition()
        self._nudged = False
        self._files: dict[Path, _Tail] = {}
        self._kept: tuple[int, int] | None = None
        self._reader = threading.Thread(target=self._read, name="hearing", daemon=True)

    def open(self) -> None:
        """From here on nothing printed is missed."""
        self._flush()
        self._in, out = os.pipe()
        self._kept = (os.dup(1), os.dup(2))
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.close(out)
        self._reader.start()

    def close(self) -> None:
        """Give the descriptors back, once all that was printed so far has been passed on."""
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
        """Wake who waits: something else has happened."""
        with self._news:
            self._nudged = True
            self._news.notify()

    def wait(self, seconds: float) -> list[str]:
        """Lines since the last call; waits for one, or for a nudge, at most so long."""
        with self._news:
            self._news.wait_for(lambda: self._heard or self._nudged, seconds)
            self._nudged = False
        self._read_files()
        with self._news:
            lines = list(self._heard)
            self._heard.clear()
        return lines

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
                self._pass_on(line)
                self._recent.append(line.strip())
            if len(part) > MAX_LINE:
                self._pass_on(part)
                part = b""

    def _pass_on(self, line: bytes) -> None:
        if self._kept is not None and line.strip():
            os.write(self._kept[1], line + b"\n")
        with self._news:
            self._heard.append(line.decode("utf-8", "replace"))
            self._news.notify()

    def _read_files(self) -> None:
        for path in self._logs.rglob("*.log*"):
            tail = self._files.setdefault(path, _Tail(path))
            for line in tail.lines():
                if line.strip() not in self._recent:
                    self._pass_on(line)


class _Tail:
    """A growing file."""

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
