"""Clients of an edge: `Client` blocks, `AsyncClient` (lamplighter.aio) awaits; the same names do the same.

>>> from lamplighter import Client
>>> with Client("http://127.0.0.1:8000", "lamp_…") as client:  # doctest: +SKIP
...     job = client.submit("preview", video="face.mp4", audio="speech.wav", wait=True)
...     client.download(job, "result.mp4", "out.mp4")
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

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


def _pieces(path: Path, start: int, advance: Advance) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while piece := file.read(PIECE):
            yield piece
            advance(len(piece))


class Client:
    """A connection to one edge. Use it in a `with`, or call `close`. Every call raises Rejected or Unreachable."""

    def __init__(
        self, url: str, key: str | None = None, *, cache: Path = CACHE, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._digests = DigestCache(cache.expanduser())
        self._uploads = Notes(cache.expanduser().with_name(UPLOADS))
        self._http = httpx.Client(base_url=self.url, headers=key_headers(key), timeout=TIMEOUT, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def call(self, call: wire.Call[T]) -> T:
        """Send one request of `lamplighter.wire`."""
        with reachable(self.url):
            reply = self._http.request(
                call.method, call.path, params=list(call.params), json=call.body, headers=call.headers
            )
        return wire.answered(call, reply.status_code, reply.content)

    def submit(
        self,
        endpoint: str,
        *,
        wait: bool = False,
        await_input: bool = False,
        webhook: str | None = None,
        options: dict[str, Any] | None = None,
        **given: Any,
    ) -> JobView:
        """Submit a job. A Path is uploaded first, and so is a text that names a local file where a file is taken.

        With `await_input` the job is accepted first and the files follow, so that a dark host wakes meanwhile.
        `webhook` is the URL that its states are delivered to. `options` are those of `wire.submit`: job_id,
        idempotency_key, priority, and `options` for further fields of the body. With `wait` the job has ended when this
        returns; raises JobFailed unless it succeeded.
        """
        files = self._files(endpoint, given)
        if await_input:
            named = {name: SCHEME + self._digests.digest(path) for name, path in files.items()}
        else:
            named = {name: self.upload(path).digest for name, path in files.items()}
        job = self.call(wire.submit(endpoint, given | named, **asked(options, await_input, webhook)))
        for path in files.values() if await_input else ():
            self.upload(path)
        return self.wait(job.id) if wait else job

    def batch(self, jobs: Sequence[Mapping[str, Any]], idempotency_key: str | None = None) -> Batch:
        """Submit up to 1000 jobs, each a body as `POST /v1/jobs` takes it; what is wrong with one rejects no other.

        >>> client.batch([{"endpoint": "echo", "input": {"text": "a"}}]).accepted[0].status  # doctest: +SKIP
        """
        return self.call(batch(jobs, idempotency_key))

    def _files(self, endpoint: str, given: dict[str, Any]) -> dict[str, Path]:
        files = local_files(given)
        if not named_as_text(given, files):
            return files
        return meant(given, files, self.call(wire.fetch(f"/v1/endpoints/{endpoint}"))["input"])

    def wait(self, job_id: str) -> JobView:
        """The job once it has ended; raises JobFailed unless it succeeded."""
        job = self.call(wire.job(job_id))
        while job.status not in FINAL:
            job = self.call(wire.job(job_id, LONG_POLL_S))
        return successful(job)

    def follow(self, job_id: str, after: str | None = None) -> Iterator[wire.Event]:
        """What the job says, until its end; resumes behind the last event when the connection breaks."""
        following = Following(after)
        while not following.final:
            try:
                yield from self._stream(job_id, following)
                if not following.heard and self.job(job_id).status in FINAL:
                    return  # `after` was the end already
            except Unreachable:
                time.sleep(RECONNECT_AFTER_S)

    def _stream(self, job_id: str, following: Following) -> Iterator[wire.Event]:
        path = wire.job_path(job_id, "events")
        with reachable(self.url), self._http.stream("GET", path, headers=following.headers) as reply:
            if reply.status_code >= 400:
                raise wire.refusal(reply.status_code, reply.read())
            following.opened()
            for text in reply.iter_text():
                yield from following.read(text)

    def upload(self, path: str | Path, advance: Advance = silent, hashed: Advance = silent) -> wire.Asset:
        """Upload a file unless it is there; `hashed` and `advance` are told the bytes read and sent.

        It goes on by itself over cuts and restarts of the edge, and over one of this program; `advance` is told a
        negative number for bytes that must be sent again.
        """
        file = Path(path)
        sha256 = self._digests.digest(file, hashed)
        present = self.call(wire.check([SCHEME + sha256])).present
        size = file.stat().st_size
        if present:
            advance(size)
            return wire.already(sha256, file.name, size)
        note = note_of(self.url, sha256)
        sending = Sending(file.name, sha256, size, self._uploads.get(note))
        sent = Sent(advance)
        while sending.asset is None:
            self._send(sending, file, sent)
            if sending.resumable and sending.place:
                self._uploads.put(note, sending.place)
            time.sleep(sending.pause_s)
        self._uploads.drop(note)
        return sending.asset

    def _send(self, sending: Sending, file: Path, sent: Sent) -> None:
        request = sending.next()
        body = None if request.start is None else _pieces(file, request.start, sent.from_(request.start))
        try:
            with reachable(self.url):
                reply = self._http.request(request.method, request.path, headers=request.headers, content=body)
        except Unreachable as error:
            sending.cut(error)
        else:
            sending.answered(reply.status_code, reply.headers, reply.content)

    def download(self, job: JobView, name: str, to: str | Path, advance: Advance = silent) -> Path:
        """Save output `name` of a job as file `to`, written beside it first and renamed when whole."""
        target = Path(to)
        part = target.with_name(target.name + ".part")
        with reachable(self.url), self._http.stream("GET", wire.job_path(job.id, "files", name)) as reply:
            if reply.status_code >= 400:
                raise wire.refusal(reply.status_code, reply.read())
            with part.open("wb") as file:
                for piece in reply.iter_bytes(PIECE):
                    file.write(piece)
                    advance(len(piece))
        part.replace(target)
        return target

    def job(self, job_id: str) -> JobView:
        """The job as it stands."""
        return self.call(wire.job(job_id))

    def jobs(self, *, limit: int = 50, **filters: str | None) -> Iterator[JobView]:
        """Jobs, newest first, page after page; `filters`: status, endpoint, priority, tag (`k:v`)."""
        cursor: str | None = None
        while True:
            page = self.call(wire.jobs(limit, cursor, filters))
            yield from page.jobs
            cursor = page.next_cursor
            if cursor is None:
                return

    def cancel(self, job_id: str) -> JobView:
        """Stop a job, waiting or running."""
        return self.call(wire.act(job_id, "cancel"))

    def retry(self, job_id: str) -> JobView:
        """Start a new round of a job that failed, was cancelled or expired."""
        return self.call(wire.act(job_id, "retry"))

    def delete(self, job_id: str) -> None:
        """Remove a job that has ended, with its outputs and logs."""
        self.call(wire.delete(wire.job_path(job_id)))

    def logs(self, job_id: str) -> str:
        """The job's log."""
        return self.call(wire.logs(job_id))
