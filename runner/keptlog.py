"""The log that is kept: the first and the last 5 MB of a job's output, however much it prints.

Bytes lie at the place that their offset gives them, so the next life of the runner may write the same output again
without doubling a line, and a job that floods its stdout costs 10 MB of disk and no memory.
"""

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from schemas.container import Progress, Ready, read_line

SHARE = 5_000_000  # bytes kept of each end
HEAD, TAIL, WHOLE = "log.head", "log.tail", "log.txt"
BLOCK = 1 << 20


class KeptLog:
    """The log in `folder`. Blocking: call it in a thread.

    `end`: the bytes that an earlier life has written; `share`: the bytes kept of each end.
    """

    def __init__(self, folder: Path, end: int = 0, share: int = SHARE) -> None:
        self._folder = folder
        self._share = share
        self._end = end
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, data: bytes, offset: int) -> None:
        """Keep `data`, whose first byte lies at `offset` of the output."""
        self._end = max(self._end, offset + len(data))
        cut = max(0, self._share - offset)
        _put(self._folder / HEAD, data[:cut], offset)
        rest, at = data[cut:], max(offset, self._share) - self._share
        if len(rest) > self._share:
            at, rest = at + len(rest) - self._share, rest[-self._share :]
        until_turn = self._share - at % self._share
        _put(self._folder / TAIL, rest[:until_turn], at % self._share)
        _put(self._folder / TAIL, rest[until_turn:], 0)

    def assemble(self) -> Path | None:
        """One file of both ends, without the lines that only spoke to the runner; None when nothing was printed."""
        if self._end == 0:
            return None
        whole = self._folder / WHOLE
        with whole.open("wb") as file:
            for line in self._lines():
                if not _only_for_the_runner(line):
                    file.write(line)
        return whole

    def _lines(self) -> Iterator[bytes]:
        left_out = self._end - 2 * self._share
        if left_out <= 0:
            yield from _split(chain(_blocks(self._folder / HEAD, 0), _blocks(self._folder / TAIL, 0)))
            return
        yield from _split(_blocks(self._folder / HEAD, 0))
        yield f"\n… {left_out} bytes are left out here …\n".encode()
        turn = (self._end - self._share) % self._share
        yield from _split(chain(_blocks(self._folder / TAIL, turn), _blocks(self._folder / TAIL, 0, turn)))


def _only_for_the_runner(line: bytes) -> bool:
    return line.startswith(b"{") and isinstance(read_line("stdout", line.rstrip(b"\n")), Progress | Ready)


def _put(path: Path, data: bytes, at: int) -> None:
    if not data:
        return
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.pwrite(file, data, at)
    finally:
        os.close(file)


def _blocks(path: Path, start: int, stop: int | None = None) -> Iterator[bytes]:
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(BLOCK if stop is None else min(BLOCK, stop - file.tell())):
            yield block


def _split(blocks: Iterator[bytes]) -> Iterator[bytes]:
    kept = b""
    for block in blocks:
        lines = (kept + block).splitlines(keepends=True)
        kept = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        yield from lines
    if kept:
        yield kept
