"""A job's output on its way out: read in chunks, kept on disk, thinned, written down, published. Never gathered.

What has been said survives the runner: see `runner.journal`. While the broker is away reading stops, the engine keeps
the output, and the job does not count as stalled. A disk that takes no log costs the log, never the job.
"""

from contextlib import aclosing
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from bus.port import TooLarge
from runner.coalesce import Coalescer, Said
from runner.engines.port import Chunk, EngineError
from runner.journal import Diary
from runner.keptlog import KeptLog
from runner.life import Life
from schemas.container import ErrorLine, LineParser, Parsed, Progress
from schemas.feed import LogEnd, Note, Place
from schemas.job import Job


class Reporter:
    """One attempt's output. `diary` must be open; it tells how far an earlier life came."""

    def __init__(self, life: Life, job: Job, diary: Diary, folder: Path) -> None:
        self._life = life
        self._job = job
        self._diary = diary
        journal = diary.now
        self._mark = journal.mark
        self._said = journal.said
        self.tail = journal.tail
        self._offset = journal.mark.offset if journal.mark else 0
        self._kept = KeptLog(folder, self._offset)
        self._unkept = False
        self._parsers = {"stdout": LineParser("stdout"), "stderr": LineParser("stderr")}
        said = Said(journal.log_offset, journal.progress_offset, journal.log_bytes)
        self._coalescer = Coalescer(job.round, job.attempt, said)
        self._saying = anyio.Lock()
        self._pending: list[Note] = list(journal.pending)
        self._last_sign: Progress | None = None
        self.sign_at = anyio.current_time()

    @property
    def blocked(self) -> bool:
        """Whether something waits for the broker: the job may have made progress that was not read yet."""
        return self._saying.locked()

    async def follow(self, handle: str) -> None:
        """Read until the container has exited. Raises EngineGone, NoSuchContainer; call it again to go on."""
        self.sign_at = anyio.current_time()
        broken: EngineError | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._tick)
            try:
                await self._read(handle)
            except EngineError as error:
                broken = error
            tasks.cancel_scope.cancel()
        if broken is not None:
            raise broken

    async def _read(self, handle: str) -> None:
        async with aclosing(self._life.engine.output(handle, self._mark)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                await self._take(chunk)

    async def close(self) -> ErrorLine | None:
        """Say all that is left and that it was all; the last error line of the job."""
        for parser in self._parsers.values():
            for parsed in parser.close():
                self._hear(parsed)
        await self._say(everything=True)
        end = Place(self._job.round, self._job.attempt, self._offset)
        self._pending.append(LogEnd(end, self._life.now()))
        await self._say()
        return self._said

    async def keep(self) -> Path | None:
        """The log to keep, as one file; None when nothing was printed, or the disk does not take it."""
        try:
            return await anyio.to_thread.run_sync(self._kept.assemble)
        except OSError as error:
            self._cannot_keep(error)
            return None

    async def _take(self, chunk: Chunk) -> None:
        start = chunk.mark.offset - len(chunk.data)
        try:
            await anyio.to_thread.run_sync(self._kept.write, chunk.data, start)
        except OSError as error:
            self._cannot_keep(error)
        self.tail = self.tail.after(chunk)
        if not self._only_noise(chunk):
            for parsed in self._parsers[chunk.stream].feed(chunk.data, start):
                self._hear(parsed)
                if self._coalescer.full:
                    await self._say()
        self._offset = chunk.mark.offset
        if all(parser.at_line_start for parser in self._parsers.values()):
            self._mark = chunk.mark

    def _cannot_keep(self, error: OSError) -> None:
        """Told once: every chunk meets the same disk."""
        if not self._unkept:
            self._unkept = True
            self._life.log_of(self._job).warning("log not kept", why=str(error))

    def _only_noise(self, chunk: Chunk) -> bool:
        """Whether whole lines came that nobody will be told: a flood must not cost the runner its time."""
        if not self._coalescer.spent or not self._parsers[chunk.stream].at_line_start:
            return False
        return chunk.data.endswith(b"\n") and (chunk.stream == "stderr" or b"{" not in chunk.data)

    def _hear(self, parsed: Parsed) -> None:
        message = parsed.message
        if isinstance(message, ErrorLine):
            self._said = message
        if isinstance(message, Progress) and message != self._last_sign:
            self._last_sign, self.sign_at = message, anyio.current_time()
        self._coalescer.take(parsed)

    async def _tick(self) -> None:
        while True:
            await anyio.sleep(self._life.pace.tick_s)
            await self._say()

    async def _say(self, *, everything: bool = False) -> None:
        """Write down what is due, then publish it. One at a time, so that offsets rise.

        A cancellation may come anywhere: what was not published stays in `_pending`, for the next call or life.
        """
        async with self._saying:
            notes = self._coalescer.flush(anyio.current_time(), self._life.now(), everything=everything)
            if notes:
                self._pending += notes
                await self._write_down()
            await self._publish()

    async def _write_down(self) -> None:
        said = self._coalescer.said
        await self._diary.note(
            pending=tuple(self._pending),
            log_offset=said.log_offset,
            progress_offset=said.progress_offset,
            log_bytes=said.log_bytes,
            mark=self._mark if self._coalescer.empty else self._diary.now.mark,
            said=self._said,
            tail=self.tail,
        )

    async def _publish(self) -> None:
        asked = anyio.current_time()
        while self._pending:
            await self._life.insist("publish", partial(self._publish_one, self._pending[0]))
            self._pending.pop(0)
        self.sign_at += anyio.current_time() - asked  # while we waited, the job's progress was not read

    async def _publish_one(self, note: Note) -> None:
        try:
            await self._life.bus.feed.publish(self._job.key, note)
        except TooLarge as error:
            self._life.log_of(self._job).error("note dropped", why=str(error))
