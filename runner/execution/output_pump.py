"""The output of one attempt: read in chunks, kept on disk, throttled, checkpointed and published.

Output is never gathered in memory. The checkpoint (`runner.execution.checkpoint`) records what was published, so the
next runner process continues there. While the broker is away, reading stops, the engine keeps the output, and the job
does not count as stalled. A disk that takes no log costs the log, never the job.
"""

import os
from collections.abc import Iterator
from contextlib import aclosing
from functools import partial
from itertools import chain
from pathlib import Path

import anyio
import anyio.to_thread

from bus.interface import MessageTooLarge
from runner.context import RunnerContext
from runner.engines.port import EngineError, OutputChunk
from runner.execution.checkpoint import CheckpointFile
from runner.execution.feed_throttle import FeedThrottle, PublishedOffsets
from schemas.container_protocol import ErrorLine, LineParser, ParsedLine, ProgressLine, ReadyLine, read_line
from schemas.feed import FeedMessage, FeedPosition, LogEndMessage
from schemas.job import Job


class OutputPump:
    """One attempt's output. `diary` must be open; it tells how far an earlier life came."""

    def __init__(self, life: RunnerContext, job: Job, diary: CheckpointFile, folder: Path) -> None:
        self._context = life
        self._job = job
        self._checkpoint = diary
        journal = diary.current
        self._cursor = journal.mark
        self._error_line = journal.said
        self.stderr_tail = journal.tail
        self._offset = journal.mark.offset if journal.mark else 0
        self._log_file = HeadTailLog(folder, self._offset)
        self._has_log_failed = False
        self._parsers = {"stdout": LineParser("stdout"), "stderr": LineParser("stderr")}
        said = PublishedOffsets(journal.log_offset, journal.progress_offset, journal.log_bytes)
        self._throttle = FeedThrottle(job.round, job.attempt, said)
        self._flush_lock = anyio.Lock()
        self._pending: list[FeedMessage] = list(journal.pending)
        self._last_progress: ProgressLine | None = None
        self.last_progress_at = anyio.current_time()

    @property
    def is_blocked(self) -> bool:
        """Whether something waits for the broker: the job may have made progress that was not read yet."""
        return self._flush_lock.locked()

    async def follow(self, handle: str) -> None:
        """Read until the container has exited. Raises EngineGone, NoSuchContainer; call it again to go on."""
        self.last_progress_at = anyio.current_time()
        broken: EngineError | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._run_flush_timer)
            try:
                await self._read(handle)
            except EngineError as error:
                broken = error
            tasks.cancel_scope.cancel()
        if broken is not None:
            raise broken

    async def _read(self, handle: str) -> None:
        async with aclosing(self._context.engine.output(handle, self._cursor)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                await self._handle_chunk(chunk)

    async def close(self) -> ErrorLine | None:
        """Say all that is left and that it was all; the last error line of the job."""
        for parser in self._parsers.values():
            for parsed in parser.close():
                self._handle_message(parsed)
        await self._flush(everything=True)
        end = FeedPosition(self._job.round, self._job.attempt, self._offset)
        self._pending.append(LogEndMessage(end, self._context.now()))
        await self._flush()
        return self._error_line

    async def assemble_log(self) -> Path | None:
        """The log to keep, as one file; None when nothing was printed, or the disk does not take it."""
        try:
            return await anyio.to_thread.run_sync(self._log_file.assemble)
        except OSError as error:
            self._warn_log_failed(error)
            return None

    async def _handle_chunk(self, chunk: OutputChunk) -> None:
        start = chunk.cursor.offset - len(chunk.data)
        try:
            await anyio.to_thread.run_sync(self._log_file.write, chunk.data, start)
        except OSError as error:
            self._warn_log_failed(error)
        self.stderr_tail = self.stderr_tail.updated(chunk)
        if not self._is_noise(chunk):
            for parsed in self._parsers[chunk.stream].feed(chunk.data, start):
                self._handle_message(parsed)
                if self._throttle.has_full_chunk:
                    await self._flush()
        self._offset = chunk.cursor.offset
        if all(parser.at_line_start for parser in self._parsers.values()):
            self._cursor = chunk.cursor

    def _warn_log_failed(self, error: OSError) -> None:
        """Told once: every chunk meets the same disk."""
        if not self._has_log_failed:
            self._has_log_failed = True
            self._context.bind_log(self._job).warning("log not kept", why=str(error))

    def _is_noise(self, chunk: OutputChunk) -> bool:
        """Whether whole lines came that nobody will be told: a flood must not cost the runner its time."""
        if not self._throttle.is_quota_used or not self._parsers[chunk.stream].at_line_start:
            return False
        return chunk.data.endswith(b"\n") and (chunk.stream == "stderr" or b"{" not in chunk.data)

    def _handle_message(self, parsed: ParsedLine) -> None:
        message = parsed.message
        if isinstance(message, ErrorLine):
            self._error_line = message
        if isinstance(message, ProgressLine) and message != self._last_progress:
            self._last_progress, self.last_progress_at = message, anyio.current_time()
        self._throttle.add(parsed)

    async def _run_flush_timer(self) -> None:
        while True:
            await anyio.sleep(self._context.intervals.tick_s)
            await self._flush()

    async def _flush(self, *, everything: bool = False) -> None:
        """Write down what is due, then publish it. One at a time, so that offsets rise.

        A cancellation may come anywhere: what was not published stays in `_pending`, for the next call or life.
        """
        async with self._flush_lock:
            notes = self._throttle.flush(anyio.current_time(), self._context.now(), everything=everything)
            if notes:
                self._pending += notes
                await self._save_checkpoint()
            await self._publish()

    async def _save_checkpoint(self) -> None:
        said = self._throttle.published
        await self._checkpoint.update(
            pending=tuple(self._pending),
            log_offset=said.log_offset,
            progress_offset=said.progress_offset,
            log_bytes=said.log_bytes,
            mark=self._cursor if self._throttle.is_empty else self._checkpoint.current.mark,
            said=self._error_line,
            tail=self.stderr_tail,
        )

    async def _publish(self) -> None:
        asked = anyio.current_time()
        while self._pending:
            await self._context.retry_while_unavailable("publish", partial(self._publish_one, self._pending[0]))
            self._pending.pop(0)
        self.last_progress_at += anyio.current_time() - asked  # while we waited, the job's progress was not read

    async def _publish_one(self, note: FeedMessage) -> None:
        try:
            await self._context.bus.feed.publish(self._job.key, note)
        except MessageTooLarge as error:
            self._context.bind_log(self._job).error("note dropped", why=str(error))


# MERGED runner/keptlog.py: The log that is kept: the first and the last 5 MB of a job's output, however much it
# prints. / Bytes lie at the place that their offset gives them, so the next life of the runner may write the same
# output again / without doubling a line, and a job that floods its stdout costs 10 MB of disk and no memory.


END_LIMIT_BYTES = 5_000_000  # bytes kept of each end
HEAD, TAIL, WHOLE = "log.head", "log.tail", "log.txt"
BLOCK_BYTES = 1 << 20


class HeadTailLog:
    """The log in `folder`. Blocking: call it in a thread.

    `end`: the bytes that an earlier life has written; `share`: the bytes kept of each end.
    """

    def __init__(self, folder: Path, end: int = 0, share: int = END_LIMIT_BYTES) -> None:
        self._folder = folder
        self._limit_bytes = share
        self._end = end
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, data: bytes, offset: int) -> None:
        """Keep `data`, whose first byte lies at `offset` of the output."""
        self._end = max(self._end, offset + len(data))
        cut = max(0, self._limit_bytes - offset)
        _write_at(self._folder / HEAD, data[:cut], offset)
        rest, at = data[cut:], max(offset, self._limit_bytes) - self._limit_bytes
        if len(rest) > self._limit_bytes:
            at, rest = at + len(rest) - self._limit_bytes, rest[-self._limit_bytes :]
        until_turn = self._limit_bytes - at % self._limit_bytes
        _write_at(self._folder / TAIL, rest[:until_turn], at % self._limit_bytes)
        _write_at(self._folder / TAIL, rest[until_turn:], 0)

    def assemble(self) -> Path | None:
        """One file of both ends, without the lines that only spoke to the runner; None when nothing was printed."""
        if self._end == 0:
            return None
        whole = self._folder / WHOLE
        with whole.open("wb") as file:
            for line in self._lines():
                if not _is_control_line(line):
                    file.write(line)
        return whole

    def _lines(self) -> Iterator[bytes]:
        left_out = self._end - 2 * self._limit_bytes
        if left_out <= 0:
            yield from _split_lines(chain(_read_blocks(self._folder / HEAD, 0), _read_blocks(self._folder / TAIL, 0)))
            return
        yield from _split_lines(_read_blocks(self._folder / HEAD, 0))
        yield f"\n… {left_out} bytes are left out here …\n".encode()
        turn = (self._end - self._limit_bytes) % self._limit_bytes
        yield from _split_lines(
            chain(_read_blocks(self._folder / TAIL, turn), _read_blocks(self._folder / TAIL, 0, turn))
        )


def _is_control_line(line: bytes) -> bool:
    return line.startswith(b"{") and isinstance(read_line("stdout", line.rstrip(b"\n")), ProgressLine | ReadyLine)


def _write_at(path: Path, data: bytes, at: int) -> None:
    if not data:
        return
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.pwrite(file, data, at)
    finally:
        os.close(file)


def _read_blocks(path: Path, start: int, stop: int | None = None) -> Iterator[bytes]:
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(BLOCK_BYTES if stop is None else min(BLOCK_BYTES, stop - file.tell())):
            yield block


def _split_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    kept = b""
    for block in blocks:
        lines = (kept + block).splitlines(keepends=True)
        kept = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        yield from lines
    if kept:
        yield kept
