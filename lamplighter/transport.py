"""HTTP calls, uploads and downloads of the blocking client, and what `async_transport` shares with it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

import httpx2

from lamplighter import api
from lamplighter.digest_cache import CHUNK_BYTES, ByteProgress, DigestCache, JsonCache, ignore_progress
from lamplighter.errors import Unreachable, error_from_problem
from lamplighter.trust import explain_refused_certificate, find_verification_error, make_ssl_context
from lamplighter.upload import UploadPlan, UploadProgress, resume_key
from schemas.asset import DIGEST_SCHEME
from schemas.environment import bypass_proxies_for_loopback
from schemas.job_view import JobView
from schemas.problems import ProblemError

T = TypeVar("T")

HTTP_TIMEOUT = httpx2.Timeout(30.0, read=90.0)  # a stream sends something every 15 s, a long poll answers within 60 s
DIGEST_CACHE_FILE = Path("~/.cache/lamplighter/digests.json")
UPLOAD_CACHE_NAME = "uploads.json"  # unfinished uploads, in the folder of DIGEST_CACHE_FILE


@contextmanager
def map_http_errors(url: str) -> Iterator[None]:
    """Raise httpx2's errors as Unreachable."""
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise unreachable(url, error) from error


def unreachable(url: str, error: Exception) -> Unreachable:
    """Return what an error of httpx2 means. Blocking where the certificate of `url` was refused: it is read again."""
    refused = find_verification_error(error)
    if refused is not None:
        return Unreachable(explain_refused_certificate(url, refused))
    why = str(error) or type(error).__name__
    return Unreachable(f"no answer from {url} ({why}): is the edge running, and is the address right?")


def auth_headers(key: str | None) -> dict[str, str]:
    """Return the header that carries the key. Raises Unauthorized for a text that a header cannot carry."""
    if key and not (key.isascii() and key.isprintable()):
        why = "the key contains a character that keys do not have, perhaps a line break: copy it again"
        raise error_from_problem(ProblemError("unauthorized", why).problem)
    return {"Authorization": f"Bearer {key}"} if key else {}


def language_headers(language: str | None) -> dict[str, str]:
    """Return the header that asks for texts in `language`, `en` or `zh`. None: the key's language."""
    return {"Accept-Language": language} if language else {}


@contextmanager
def replace_on_success(target: Path) -> Iterator[Path]:
    """Yield the path of a temporary file beside `target` and rename it to `target` at the end of the block.

    If the block raises, the temporary file is removed. There is no fsync: a download can be repeated.
    """
    part = target.with_name(target.name + ".part")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _read_chunks(path: Path, start: int, advance: ByteProgress) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
            advance(len(chunk))


class EdgeTransport:
    """A connection to one edge: calls, uploads and downloads.

    `ca`: a PEM file with the certificates to trust in place of this machine's. `pin`: `sha256:…` of the one public key
    or certificate to trust, under any name; several with commas, or a file with the certificate.
    """

    def __init__(  # noqa: PLR0913 - what a program may choose about its connection, by keyword
        self,
        url: str,
        key: str | None = None,
        *,
        cache: Path = DIGEST_CACHE_FILE,
        ca: str | None = None,
        pin: str | None = None,
        language: str | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._digest_cache = DigestCache(cache.expanduser())
        self._upload_cache = JsonCache(cache.expanduser().with_name(UPLOAD_CACHE_NAME))
        with map_http_errors(self.url):
            self._http = httpx2.Client(
                base_url=self.url,
                headers=auth_headers(key) | language_headers(language),
                timeout=HTTP_TIMEOUT,
                transport=transport,
                verify=make_ssl_context(self.url, ca, pin) or True,
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
        """Send one request of `lamplighter.api`, for routes without a method here.

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
        """Upload a file unless the edge has it. Call `hashed` and `advance` with the number of bytes read and sent.

        The upload resumes after a lost connection, a restart of the edge and a restart of this program. `advance`
        gets a negative number for bytes that must be sent again.

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
        cache_key = resume_key(self.url, sha256)
        plan = UploadPlan(file.name, sha256, size, self._upload_cache.get(cache_key))
        progress = UploadProgress(advance)
        while plan.asset is None:
            self._send_next(plan, file, progress)
            if plan.is_resumable and plan.upload_path:
                self._upload_cache.put(cache_key, plan.upload_path)
            time.sleep(plan.delay_s)
        self._upload_cache.drop(cache_key)
        return plan.asset

    def _send_next(self, plan: UploadPlan, file: Path, progress: UploadProgress) -> None:
        request = plan.next_request()
        body = None if request.start is None else _read_chunks(file, request.start, progress.start_at(request.start))
        try:
            with map_http_errors(self.url):
                reply = self._http.request(request.method, request.path, headers=request.headers, content=body)
        except Unreachable as error:
            plan.on_connection_error(error)
        else:
            plan.on_response(reply.status_code, reply.headers, reply.content)

    def download(self, job: JobView, name: str, to: str | Path, advance: ByteProgress = ignore_progress) -> Path:
        """Save output `name` of a job as the file `to`. The file appears there only when it is complete.

        >>> job = client.submit("echo", file="hello.txt", wait=True)
        >>> client.download(job, job.output.files[0].name, "copy.txt").read_text()
        'hello\\n'
        """
        target = Path(to)
        with map_http_errors(self.url), self._http.stream("GET", api.job_path(job.id, "files", name)) as reply:
            if reply.status_code >= 400:
                raise api.error_from_response(reply.status_code, reply.read())
            with replace_on_success(target) as part, part.open("wb") as file:
                for chunk in reply.iter_bytes(CHUNK_BYTES):
                    file.write(chunk)
                    advance(len(chunk))
        return target
