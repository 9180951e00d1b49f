"""`AsyncClient`: `lamplighter.sdk.Client` for programs that await."""

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import anyio
import anyio.to_thread
import httpx

from lamplighter import wire
from lamplighter.batches import Batch, batch
from lamplighter.digests import DigestCache
from lamplighter.errors import Unreachable
from lamplighter.notes import Notes
from lamplighter.sending import Sending, Sent, note_of
from lamplighter.shared import (
    CACHE,
    LONG_POLL_S,
    PIECE,
    RECONNECT_AFTER_S,
    TIMEOUT,
    UPLOADS,
    Advance,
    Following,
    asked,
    key_headers,
    local_files,
    meant,
    named_as_text,
    reachable,
    silent,
    successful,
)
from schemas.asset import SCHEME
from schemas.view import JobView
from schemas.words import FINAL

T = TypeVar("T")


async def _pieces(path: Path, start: int, advance: Advance) -> AsyncIterator[bytes]:
    async with await anyio.open_file(path, "rb") as file:
        await file.seek(start)
        while piece := await file.read(PIECE):
            yield piece
            advance(len(piece))


class AsyncClient:
    """A connection to one edge, for `async with`. Every call raises Rejected or Unreachable."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        cache: Path = CACHE,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._digests = DigestCache(cache.expanduser())
        self._uploads = Notes(cache.expanduser().with_name(UPLOADS))
        self._http = httpx.AsyncClient(
            base_url=self.url, headers=key_headers(key), timeout=TIMEOUT, transport=transport
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    async def call(self, call: wire.Call[T]) -> T:
        """Send one request of `lamplighter.wire`."""
        with reachable(self.url):
            reply = await self._http.request(
                call.method, call.path, params=list(call.params), json=call.body, headers=call.headers
            )
        return wire.answered(call, reply.status_code, reply.content)

    async def submit(
        self,
        endpoint: str,
        *,
        wait: bool = False,
        await_input: bool = False,
        webhook: str | None = None,
        options: dict[str, Any] | None = None,
        **given: Any,
    ) -> JobView:
        """As `Client.submit`."""
        files = await self._files(endpoint, given)
        if await_input:
            digest, run = self._digests.digest, anyio.to_thread.run_sync
            named = {name: SCHEME + await run(digest, path) for name, path in files.items()}
        else:
            named = {name: (await self.upload(path)).digest for name, path in files.items()}
        job = await self.call(wire.submit(endpoint, given | named, **asked(options, await_input, webhook)))
        for path in files.values() if await_input else ():
            await self.upload(path)
        return await self.wait(job.id) if wait else job

    async def batch(self, jobs: Sequence[Mapping[str, Any]], idempotency_key: str | None = None) -> Batch:
        """As `Client.batch`."""
        return await self.call(batch(jobs, idempotency_key))

    async def _files(self, endpoint: str, given: dict[str, Any]) -> dict[str, Path]:
        files = local_files(given)
        if not named_as_text(given, files):
            return files
        return meant(given, files, (await self.call(wire.fetch(f"/v1/endpoints/{endpoint}")))["input"])

    async def wait(self, job_id: str) -> JobView:
        """The job once it has ended; raises JobFailed unless it succeeded."""
        job = await self.call(wire.job(job_id))
        while job.status not in FINAL:
            job = await self.call(wire.job(job_id, LONG_POLL_S))
        return successful(job)

    async def follow(self, job_id: str, after: str | None = None) -> AsyncIterator[wire.Event]:
        """What the job says, until its end; resumes behind the last event when the connection breaks."""
        following = Following(after)
        while not following.final:
            try:
                async for event in self._stream(job_id, following):
                    yield event
                if not following.heard and (await self.job(job_id)).status in FINAL:
                    return  # `after` was the end already
            except Unreachable:
                await anyio.sleep(RECONNECT_AFTER_S)

    async def _stream(self, job_id: str, following: Following) -> AsyncIterator[wire.Event]:
        path = wire.job_path(job_id, "events")
        with reachable(self.url):
            async with self._http.stream("GET", path, headers=following.headers) as reply:
                if reply.status_code >= 400:
                    raise wire.refusal(reply.status_code, await reply.aread())
                following.opened()
                async for text in reply.aiter_text():
                    for event in following.read(text):
                        yield event

    async def upload(self, path: str | Path, advance: Advance = silent) -> wire.Asset:
        """As `Client.upload`; hashing is done in a thread."""
        file = Path(path)
        sha256 = await anyio.to_thread.run_sync(self._digests.digest, file)
        size = (await anyio.Path(file).stat()).st_size
        if (await self.call(wire.check([SCHEME + sha256]))).present:
            advance(size)
            return wire.already(sha256, file.name, size)
        note = note_of(self.url, sha256)
        sending = Sending(file.name, sha256, size, await anyio.to_thread.run_sync(self._uploads.get, note))
        sent = Sent(advance)
        while sending.asset is None:
            await self._send(sending, file, sent)
            if sending.resumable and sending.place:
                await anyio.to_thread.run_sync(self._uploads.put, note, sending.place)
            await anyio.sleep(sending.pause_s)
        await anyio.to_thread.run_sync(self._uploads.drop, note)
        return sending.asset

    async def _send(self, sending: Sending, file: Path, sent: Sent) -> None:
        request = sending.next()
        body = None if request.start is None else _pieces(file, request.start, sent.from_(request.start))
        try:
            with reachable(self.url):
                reply = await self._http.request(request.method, request.path, headers=request.headers, content=body)
        except Unreachable as error:
            sending.cut(error)
        else:
            sending.answered(reply.status_code, reply.headers, reply.content)

    async def download(self, job: JobView, name: str, to: str | Path, advance: Advance = silent) -> Path:
        """As `Client.download`."""
        target = Path(to)
        part = target.with_name(target.name + ".part")
        with reachable(self.url):
            async with self._http.stream("GET", wire.job_path(job.id, "files", name)) as reply:
                if reply.status_code >= 400:
                    raise wire.refusal(reply.status_code, await reply.aread())
                async with await anyio.open_file(part, "wb") as file:
                    async for piece in reply.aiter_bytes(PIECE):
                        await file.write(piece)
                        advance(len(piece))
        part.replace(target)
        return target

    async def job(self, job_id: str) -> JobView:
        """The job as it stands."""
        return await self.call(wire.job(job_id))

    async def jobs(self, *, limit: int = 50, **filters: str | None) -> AsyncIterator[JobView]:
        """As `Client.jobs`."""
        cursor: str | None = None
        while True:
            page = await self.call(wire.jobs(limit, cursor, filters))
            for job in page.jobs:
                yield job
            cursor = page.next_cursor
            if cursor is None:
                return

    async def cancel(self, job_id: str) -> JobView:
        """Stop a job, waiting or running."""
        return await self.call(wire.act(job_id, "cancel"))

    async def retry(self, job_id: str) -> JobView:
        """Start a new round of a job that failed, was cancelled or expired."""
        return await self.call(wire.act(job_id, "retry"))

    async def delete(self, job_id: str) -> None:
        """Remove a job that has ended, with its outputs and logs."""
        await self.call(wire.delete(wire.job_path(job_id)))

    async def logs(self, job_id: str) -> str:
        """The job's log."""
        return await self.call(wire.logs(job_id))
