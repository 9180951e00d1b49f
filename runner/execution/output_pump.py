"""The output of one attempt: read in chunks, kept on disk, throttled, checkpointed and published.

Output is never gathered in memory. The checkpoint (`runner.execution.durable_state`) records what was published, so the
next runner process continues there. While the broker is away, reading stops, the engine keeps the output, and the job
does not count as stalled. A disk that takes no log costs the log, never the job.
"""

import os
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import anyio
import anyio.to_thread
from msgspec.structs import replace

from bus.interface import MessageTooLarge
from bus.notifier import Notifier
from runner.context import RunnerContext, run_in_background
from runner.engines.port import OutputChunk, OutputCursor
from runner.execution.durable_state import CheckpointFile
from runner.execution.output_filters import FeedThrottle, PublishedOffsets, SecretRedactor
from runner.execution.warm_container import OutputRest
from schemas.container_protocol import (
    EndLine,
    ErrorLine,
    LineParser,
    LogLine,
    MetricLine,
    OutputStream,
    ParsedLine,
    ProgressLine,
    ReadyLine,
    read_line,
    read_mark,
)
from schemas.events import FeedMessage, FeedPosition, LogEndMessage
from schemas.job import METRIC_LIMIT, Job, JobMetric


class OutputPump:
    """The output of one attempt. `checkpoint` must be loaded; it says how far an earlier runner process came.

    In a reused container, the output of the job begins at `since` and ends with its end line: `end_code` is the code
    in it, and `rest` the output after it. The next owner of the container, or `close_rest`, closes `rest`.
    Offsets count from `since`.
    """

    def __init__(  # noqa: PLR0913 - what it reads, and where it stores that
        self,
        context: RunnerContext,
        job: Job,
        checkpoint: CheckpointFile,
        folder: Path,
        *,
        is_reused: bool = False,
        since: OutputCursor | None = None,
    ) -> None:
        self._context = context
        self._job = job
        self._checkpoint = checkpoint
        state = checkpoint.current
        self._cursor = state.cursor
        self._error_line = state.error_line
        self._metrics = {metric.name: metric for metric in state.metrics}
        self.stderr_tail = state.tail
        self._offset = state.cursor.offset if state.cursor else 0
        self._log_file = HeadTailLog(folder, self._offset)
        self._has_log_failed = False
        self._parsers = {"stdout": LineParser("stdout"), "stderr": LineParser("stderr")}
        published = PublishedOffsets(state.log_offset, state.progress_offset, state.log_bytes)
        self._throttle = FeedThrottle(job.round, job.attempt, published)
        self._flush_lock = anyio.Lock()
        self._due = Notifier()
        self._pending: list[FeedMessage] = list(state.unpublished)
        self._last_progress: ProgressLine | None = None
        self.last_progress_at = anyio.current_time()
        self.is_reused = is_reused
        self.since = since
        self.end_code = state.end_code
        self.rest: OutputRest | None = None
        self.redactor = SecretRedactor()  # of the job's secrets
        self._ended_streams: set[OutputStream] = set()
        self._ready: dict[OutputStream, int] = {}
        self._last_code = 0

    @property
    def metrics(self) -> tuple[JobMetric, ...]:
        """The last value of each metric that the job reported, of the first `METRIC_LIMIT` names."""
        return tuple(self._metrics.values())

    @property
    def is_blocked(self) -> bool:
        """Return whether a message waits for the broker: the job may have made progress that was not read yet."""
        return self._flush_lock.locked()

    async def follow(self, handle: str) -> None:
        """Read until the container has exited, or until the job's end line; call it again to continue.

        Raises EngineUnavailable, NoSuchContainer.
        """
        self.last_progress_at = anyio.current_time()
        async with run_in_background(self._run_flush_timer):
            await self._read(handle)

    async def _read(self, handle: str) -> None:
        if self.end_code is not None:  # an earlier runner process has read to the end
            return
        since = shift_cursor(self._cursor, self.since, 1) or self.since
        chunks = self._context.engine.output(handle, since)
        try:
            async for chunk in chunks:
                cursor = shift_cursor(chunk.cursor, self.since, -1)
                data = self.redactor.redact(chunk.stream, chunk.data)
                await self._handle_chunk(replace(chunk, data=data, cursor=cursor))
                if len(self._ended_streams) == len(self._parsers):
                    self.end_code = self._last_code
                    self.rest = OutputRest(chunks, chunk.cursor, self._ready)
                    return
        finally:
            if self.rest is None:
                await chunks.aclose()

    async def close_rest(self) -> None:
        """Close the rest of the output, unless another job has taken it."""
        rest, self.rest = self.rest, None
        if rest is not None:
            await rest.chunks.aclose()

    def close(self) -> ErrorLine | None:
        """Parse what is left of the output, which has ended; return the job's last error line."""
        for parser in self._parsers.values():
            for parsed in parser.close():
                self._handle_message(parsed)
        return self._error_line

    async def publish_rest(self) -> None:
        """Publish what is left, after `close`."""
        await self._flush(everything=True)

    async def publish_log_end(self) -> None:
        """Publish that nothing follows, after `publish_rest`."""
        end = FeedPosition(self._job.round, self._job.attempt, self._offset)
        self._pending.append(LogEndMessage(end, self._context.now()))
        await self._flush()

    async def assemble_log(self) -> Path | None:
        """Return the log as one file; None if nothing was printed, or if the disk is full."""
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
        if self._throttle.is_due(anyio.current_time()):
            self._due.notify()

    def _warn_log_failed(self, error: OSError) -> None:
        """Log the first write error only: every chunk meets the same disk."""
        if not self._has_log_failed:
            self._has_log_failed = True
            self._context.bind_log(self._job).warning("log_write_failed", error=str(error))

    def _is_noise(self, chunk: OutputChunk) -> bool:
        """Return whether the chunk holds only lines that are not published.

        A flood of them must not take the runner's CPU time.
        """
        if not self._throttle.is_quota_used or not self._parsers[chunk.stream].at_line_start:
            return False
        may_have_messages = chunk.stream == "stdout" or self.is_reused
        return chunk.data.endswith(b"\n") and not (may_have_messages and b"{" in chunk.data)

    def _handle_message(self, parsed: ParsedLine) -> None:
        message = self.redactor.redact_message(parsed.message)
        parsed = ParsedLine(message, parsed.end)
        if self.is_reused and (mark := read_mark(parsed)) is not None:
            stream: OutputStream = "stderr" if isinstance(message, LogLine) else "stdout"
            if isinstance(mark, EndLine):
                self._ended_streams.add(stream)
                self._last_code = mark.code
            elif mark.job is not None:
                self._ready[stream] = mark.job
            return
        if isinstance(message, ErrorLine):
            self._error_line = message
        if isinstance(message, MetricLine) and (message.name in self._metrics or len(self._metrics) < METRIC_LIMIT):
            self._metrics[message.name] = JobMetric(message.name, message.value, message.unit)
        if isinstance(message, ProgressLine) and message != self._last_progress:
            self._last_progress, self.last_progress_at = message, anyio.current_time()
        self._throttle.add(parsed)

    async def _run_flush_timer(self) -> None:
        """Flush at intervals, and at once what follows a silence: a first progress is seen when it is made.

        So little is left to publish when the job ends.
        """
        while True:
            with anyio.move_on_after(self._context.intervals.tick_s):
                await self._due.wait()
            await self._flush()

    async def _flush(self, *, everything: bool = False) -> None:
        """Write the messages that are due to the checkpoint, then publish them.

        One flush at a time, so that offsets rise.

        After a cancellation, what was not published stays in `_pending`, for the next call or the next runner process.
        """
        async with self._flush_lock:
            messages = self._throttle.flush(anyio.current_time(), self._context.now(), everything=everything)
            if messages:
                self._pending += messages
                await self._save_checkpoint()
            await self._publish()

    async def _save_checkpoint(self) -> None:
        published = self._throttle.published
        await self._checkpoint.update(
            unpublished=tuple(self._pending),
            log_offset=published.log_offset,
            progress_offset=published.progress_offset,
            log_bytes=published.log_bytes,
            cursor=self._cursor if self._may_resume_here else self._checkpoint.current.cursor,
            error_line=self._error_line,
            metrics=self.metrics,
            tail=self.stderr_tail,
            end_code=self.end_code,
        )

    @property
    def _may_resume_here(self) -> bool:
        """Return whether the next runner process may read on from here: it has to see both end lines, or their code."""
        return self._throttle.is_empty and (not self._ended_streams or self.end_code is not None)

    async def _publish(self) -> None:
        started_at = anyio.current_time()
        while self._pending:
            await self._context.retry_while_unavailable("publish", partial(self._publish_one, self._pending[0]))
            self._pending.pop(0)
        self.last_progress_at += anyio.current_time() - started_at  # during the wait, the job's progress was not read

    async def _publish_one(self, message: FeedMessage) -> None:
        try:
            await self._context.bus.feed.publish(self._job.key, message)
        except MessageTooLarge as error:
            self._context.bind_log(self._job).error("feed_message_dropped", error=str(error))


def shift_cursor(cursor: OutputCursor | None, since: OutputCursor | None, sign: int) -> OutputCursor | None:
    """Return the cursor with an offset that counts from `since` (`sign` -1), or from the container's start (1)."""
    if cursor is None or since is None:
        return cursor
    return OutputCursor(cursor.offset + sign * since.offset, cursor.position)


LOG_END_LIMIT_BYTES = 5_000_000  # kept of each end
LOG_HEAD_FILE, LOG_TAIL_FILE, LOG_FILE = "log.head", "log.tail", "log.txt"
LOG_BLOCK_BYTES = 1 << 20


class HeadTailLog:
    """The kept log in `folder`: the first and the last 5 MB of the output, however much a job prints. Blocking.

    Bytes are stored by their offset. So the next runner process may write the same output again without doubling a
    line, and a job that floods stdout costs 10 MB of disk and no memory. `end` is the number of bytes that an earlier
    process has written; `limit_bytes` are kept of each end.
    """

    def __init__(self, folder: Path, end: int = 0, limit_bytes: int = LOG_END_LIMIT_BYTES) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._end = end
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, data: bytes, offset: int) -> None:
        """Store `data`, whose first byte has this `offset` in the output."""
        self._end = max(self._end, offset + len(data))
        cut = max(0, self._limit_bytes - offset)
        _write_at(self._folder / LOG_HEAD_FILE, data[:cut], offset)
        rest, at = data[cut:], max(offset, self._limit_bytes) - self._limit_bytes
        if len(rest) > self._limit_bytes:
            at, rest = at + len(rest) - self._limit_bytes, rest[-self._limit_bytes :]
        until_turn = self._limit_bytes - at % self._limit_bytes
        _write_at(self._folder / LOG_TAIL_FILE, rest[:until_turn], at % self._limit_bytes)
        _write_at(self._folder / LOG_TAIL_FILE, rest[until_turn:], 0)

    def assemble(self) -> Path | None:
        """Return one file of both ends, without control lines; None if nothing was printed."""
        if self._end == 0:
            return None
        whole = self._folder / LOG_FILE
        with whole.open("wb") as file:
            for line in self._lines():
                if not _is_control_line(line):
                    file.write(line)
        return whole if whole.stat().st_size else None

    def _lines(self) -> Iterator[bytes]:
        left_out = self._end - 2 * self._limit_bytes
        if left_out <= 0:
            yield from _split_lines(
                chain(_read_blocks(self._folder / LOG_HEAD_FILE, 0), _read_blocks(self._folder / LOG_TAIL_FILE, 0))
            )
            return
        yield from _split_lines(_read_blocks(self._folder / LOG_HEAD_FILE, 0))
        yield f"\n… {left_out} bytes are left out here …\n".encode()
        turn = (self._end - self._limit_bytes) % self._limit_bytes
        yield from _split_lines(
            chain(_read_blocks(self._folder / LOG_TAIL_FILE, turn), _read_blocks(self._folder / LOG_TAIL_FILE, 0, turn))
        )


def _is_control_line(line: bytes) -> bool:
    return line.startswith(b"{") and isinstance(
        read_line("stdout", line.rstrip(b"\n")), ProgressLine | ReadyLine | EndLine
    )


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
        while block := file.read(LOG_BLOCK_BYTES if stop is None else min(LOG_BLOCK_BYTES, stop - file.tell())):
            yield block


def _split_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    kept = b""
    for block in blocks:
        lines = (kept + block).splitlines(keepends=True)
        kept = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        yield from lines
    if kept:
        yield kept
