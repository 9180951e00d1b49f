"""What goes over a blocking connection: calls, and files up and down."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self, TypeVar

import httpx

from lamplighter import wire
from lamplighter.digests import DigestCache
from lamplighter.errors import Unreachable
from lamplighter.notes import Notes
from lamplighter.sending import Sending, Sent, note_of
from lamplighter.shared import CACHE, PIECE, TIMEOUT, UPLOADS, Advance, key_headers, reachable, silent, whole
from schemas.asset import SCHEME
from schemas.loopback import past_proxies
from schemas.view import JobView

T = TypeVar("T")


def _pieces(path: Path, start: int, advance: Advance) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while piece := file.read(PIECE):
            yield piece
            advance(len(piece))


class Connection:
    """A connection to one edge, and the files that go over it."""

    def __init__(
        self, url: str, key: str | None = None, *, cache: Path = CACHE, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._digests = DigestCache(cache.expanduser())
        self._uploads = Notes(cache.expanduser().with_name(UPLOADS))
        with reachable(self.url):
            self._http = httpx.Client(
                base_url=self.url,
                headers=key_headers(key),
                timeout=TIMEOUT,
                transport=transport,
                mounts=past_proxies(self.url),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection.

        >>> other = Client(url, key)
        >>> other.close()
        """
        self._http.close()

    def call(self, call: wire.Call[T]) -> T:
        """Send one request of `lamplighter.wire`, for what has no method here.

        >>> client.call(wire.fetch("/v1/endpoints/echo"))["name"]
        'echo'
        """
        with reachable(self.url):
            reply = self._http.request(
                call.method, call.path, params=list(call.params), json=call.body, headers=call.headers
            )
        return wire.answered(call, reply.status_code, reply.content)

    def upload(self, path: str | Path, advance: Advance = silent, hashed: Advance = silent) -> wire.Asset:
        """Upload a file unless it is there; `hashed` and `advance` are told the bytes read and sent.

        It goes on by itself over cuts and restarts of the edge, and over one of this program; `advance` is told a
        negative number for bytes that must be sent again.

        >>> client.upload("hello.txt").digest
        'sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03'
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
        """Save output `name` of a job as file `to`, written beside it first and renamed when whole.

        >>> job = client.submit("echo", file="hello.txt", wait=True)
        >>> client.download(job, job.output.files[0].name, "copy.txt").read_text()
        'hello\\n'
        """
        target = Path(to)
        with reachable(self.url), self._http.stream("GET", wire.job_path(job.id, "files", name)) as reply:
            if reply.status_code >= 400:
                raise wire.refusal(reply.status_code, reply.read())
            with whole(target) as part, part.open("wb") as file:
                for piece in reply.iter_bytes(PIECE):
                    file.write(piece)
                    advance(len(piece))
        return target
