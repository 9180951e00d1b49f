"""What the blocking and the awaiting client have in common: settings, local files, and when following is over."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

import httpx

from lamplighter import api
from lamplighter.digest_cache import DigestCache, JsonCache
from lamplighter.errors import Unreachable, error_from_problem
from lamplighter.upload import UploadPlan, UploadProgress, resume_key
from schemas.asset import DIGEST_SCHEME
from schemas.environment import bypass_proxies_for_loopback
from schemas.job_view import JobView
from schemas.problems import ProblemError

HTTP_TIMEOUT = httpx.Timeout(30.0, read=90.0)  # a stream says something every 15 s, a long poll answers within 60
DIGEST_CACHE_FILE = Path("~/.cache/lamplighter/digests.json")
UPLOAD_CACHE_NAME = "uploads.json"  # beside it: uploads that were begun
CHUNK_BYTES = 1024 * 1024

ByteProgress = Callable[[int], None]


def ignore_progress(_: int) -> None:
    """Nobody watches the progress."""


@contextmanager
def map_http_errors(url: str) -> Iterator[None]:
    """httpx's errors as ours."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = str(error) or type(error).__name__
        raise Unreachable(f"no answer from {url} ({why}): is the edge running, and is the address right?") from error


def auth_headers(key: str | None) -> dict[str, str]:
    """The header that carries the key. Raises Unauthorized for a text that no header can carry."""
    if key and not (key.isascii() and key.isprintable()):
        why = "the key holds a character that no key has, a line end perhaps: copy it anew"
        raise error_from_problem(ProblemError("unauthorized", why).problem)
    return {"Authorization": f"Bearer {key}"} if key else {}


@contextmanager
def replace_on_success(target: Path) -> Iterator[Path]:
    """A file to write beside `target`, which becomes `target` at the end of the block; if that fails, none is left."""
    part = target.with_name(target.name + ".part")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


# MERGED lamplighter/connection.py: What goes over a blocking connection: calls, and files up and down.


T = TypeVar("T")


def _read_chunks(path: Path, start: int, advance: ByteProgress) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while piece := file.read(CHUNK_BYTES):
            yield piece
            advance(len(piece))


class EdgeTransport:
    """A connection to one edge, and the files that go over it."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        cache: Path = DIGEST_CACHE_FILE,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._digest_cache = DigestCache(cache.expanduser())
        self._upload_cache = JsonCache(cache.expanduser().with_name(UPLOAD_CACHE_NAME))
        with map_http_errors(self.url):
            self._http = httpx.Client(
                base_url=self.url,
                headers=auth_headers(key),
                timeout=HTTP_TIMEOUT,
                transport=transport,
                mounts=bypass_proxies_for_loopback(self.url),
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

    def call(self, call: api.ApiRequest[T]) -> T:
        """Send one request of `lamplighter.api`, for what has no method here.

        >>> client.call(api.get_json("/v1/endpoints/echo"))["name"]
        'echo'
        """
        with map_http_errors(self.url):
            reply = self._http.request(
                call.method, call.path, params=list(call.params), json=call.body, headers=call.headers
            )
        return api.parse_response(call, reply.status_code, reply.content)

    def upload(
        self, path: str | Path, advance: ByteProgress = ignore_progress, hashed: ByteProgress = ignore_progress
    ) -> api.Asset:
        """Upload a file unless it is there; `hashed` and `advance` are told the bytes read and sent.

        It goes on by itself over cuts and restarts of the edge, and over one of this program; `advance` is told a
        negative number for bytes that must be sent again.

        >>> client.upload("hello.txt").digest
        'sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03'
        """
        file = Path(path)
        sha256 = self._digest_cache.digest(file, hashed)
        present = self.call(api.check_assets([DIGEST_SCHEME + sha256])).present
        size = file.stat().st_size
        if present:
            advance(size)
            return api.known_asset(sha256, file.name, size)
        note = resume_key(self.url, sha256)
        sending = UploadPlan(file.name, sha256, size, self._upload_cache.get(note))
        sent = UploadProgress(advance)
        while sending.asset is None:
            self._send_next(sending, file, sent)
            if sending.is_resumable and sending.upload_path:
                self._upload_cache.put(note, sending.upload_path)
            time.sleep(sending.delay_s)
        self._upload_cache.drop(note)
        return sending.asset

    def _send_next(self, sending: UploadPlan, file: Path, sent: UploadProgress) -> None:
        request = sending.next_request()
        body = None if request.start is None else _read_chunks(file, request.start, sent.start_at(request.start))
        try:
            with map_http_errors(self.url):
                reply = self._http.request(request.method, request.path, headers=request.headers, content=body)
        except Unreachable as error:
            sending.on_connection_error(error)
        else:
            sending.on_response(reply.status_code, reply.headers, reply.content)

    def download(self, job: JobView, name: str, to: str | Path, advance: ByteProgress = ignore_progress) -> Path:
        """Save output `name` of a job as file `to`, written beside it first and renamed when whole.

        >>> job = client.submit("echo", file="hello.txt", wait=True)
        >>> client.download(job, job.output.files[0].name, "copy.txt").read_text()
        'hello\\n'
        """
        target = Path(to)
        with map_http_errors(self.url), self._http.stream("GET", api.job_path(job.id, "files", name)) as reply:
            if reply.status_code >= 400:
                raise api.error_from_response(reply.status_code, reply.read())
            with replace_on_success(target) as part, part.open("wb") as file:
                for piece in reply.iter_bytes(CHUNK_BYTES):
                    file.write(piece)
                    advance(len(piece))
        return target
