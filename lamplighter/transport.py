"""HTTP calls, uploads and downloads of both clients: `EdgeTransport` blocks, `AsyncEdgeTransport` awaits.

The first part says which certificate of an edge a client trusts, and what an error says about one that is not trusted.
"""

import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Generic, Self, TypeVar
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import httpx2

from lamplighter import api
from lamplighter.api import TrustInvalid, Unreachable, error_from_problem
from lamplighter.files import (
    CHUNK_BYTES,
    ByteProgress,
    DigestCache,
    JsonCache,
    UploadPlan,
    UploadProgress,
    ignore_progress,
    resume_key,
)
from schemas.asset import DIGEST_SCHEME
from schemas.certificates import (
    CertificateInfo,
    CertificateNotPinned,
    CertificateUnreadable,
    PinInvalid,
    authority_context,
    first_certificate,
    parse_pins,
    pinned_context,
    read_certificate,
)
from schemas.job_view import JobView
from schemas.outbound_rules import bypass_proxies_for_loopback, is_loopback_url
from schemas.problems import ProblemError

T = TypeVar("T")

FETCH_TIMEOUT_S = 5.0


def make_ssl_context(url: str, ca: str | None, pin: str | None) -> ssl.SSLContext | None:
    """Return the context for `url`; None: the certificates that this machine trusts. Blocking.

    `ca`: a PEM file with the certificates to trust. `pin`: see `schemas.certificates`. Raises TrustInvalid.
    """
    if not (ca or pin):
        return None
    if ca and pin:
        raise TrustInvalid("both ca and pin are given: give the authority's file, or the pin of the edge's own key")
    if urlsplit(url).scheme not in {"https", "wss"}:
        if is_loopback_url(url):
            return None
        raise TrustInvalid(f"{url} is not encrypted, so ca and pin protect nothing: use the https address of the edge")
    try:
        return pinned_context(parse_pins(pin)) if pin else authority_context(ca or "")
    except PinInvalid as error:
        raise TrustInvalid(str(error)) from error
    except OSError as error:
        raise TrustInvalid(f"the file {ca} cannot be used for ca ({error.strerror or error}): correct it") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def find_verification_error(error: BaseException) -> ssl.SSLCertVerificationError | None:
    """Return the failed check of a certificate that caused `error`, if one did."""
    return next((one for one in _causes(error) if isinstance(one, ssl.SSLCertVerificationError)), None)


def explain_refused_certificate(url: str, error: ssl.SSLCertVerificationError) -> str:
    """Return one line: which certificate `url` shows, why it is not trusted, and what to pass. Blocking."""
    shown = error.shown if isinstance(error, CertificateNotPinned) else fetch_certificate(url)
    if shown is None:
        return f"{url} shows a certificate that is not trusted ({error.verify_message}): give ca or pin"
    why = "it is not the pinned one" if isinstance(error, CertificateNotPinned) else error.verify_message
    return (
        f"{url} shows a certificate that is not trusted ({why}): {shown}. If this is your edge's certificate, pass "
        f"--pin {shown.pin} (its public key), or --ca FILE with the certificate of its issuer"
    )


def fetch_certificate(url: str) -> CertificateInfo | None:
    """Return the certificate that the server shows now, unchecked; None if it cannot be read."""
    parts = urlsplit(url)
    try:
        address = (parts.hostname or "", parts.port or 443)
        pem = ssl.get_server_certificate(address, timeout=FETCH_TIMEOUT_S)
        return read_certificate(first_certificate(pem))
    except (OSError, ValueError, CertificateUnreadable):
        return None


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


HttpT = TypeVar("HttpT", httpx2.Client, httpx2.AsyncClient)
TransportT = TypeVar("TransportT", httpx2.BaseTransport, httpx2.AsyncBaseTransport)


class _Connection(Generic[HttpT, TransportT]):
    """A connection to one edge, with what this machine remembers of files: their digests, and unfinished uploads.

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
        transport: TransportT | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._digest_cache = DigestCache(cache.expanduser())
        self._upload_cache = JsonCache(cache.expanduser().with_name(UPLOAD_CACHE_NAME))
        with map_http_errors(self.url):
            self._http: HttpT = self._open(
                base_url=self.url,
                headers=auth_headers(key) | language_headers(language),
                timeout=HTTP_TIMEOUT,
                transport=transport,
                verify=make_ssl_context(self.url, ca, pin) or True,
                mounts=bypass_proxies_for_loopback(self.url),
            )

    def _open(self, **options: Any) -> HttpT:
        raise NotImplementedError


class EdgeTransport(_Connection[httpx2.Client, httpx2.BaseTransport]):
    """Calls, uploads and downloads that block."""

    def _open(self, **options: Any) -> httpx2.Client:
        return httpx2.Client(**options)

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


@asynccontextmanager
async def map_http_errors_async(url: str) -> AsyncIterator[None]:
    """Do what `map_http_errors` does, without blocking the event loop."""
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise await anyio.to_thread.run_sync(unreachable, url, error) from error


async def _read_chunks_async(path: Path, start: int, advance: ByteProgress) -> AsyncIterator[bytes]:
    async with await anyio.open_file(path, "rb") as file:
        await file.seek(start)
        while chunk := await file.read(CHUNK_BYTES):
            yield chunk
            advance(len(chunk))


class AsyncEdgeTransport(_Connection[httpx2.AsyncClient, httpx2.AsyncBaseTransport]):
    """Calls, uploads and downloads to await."""

    def _open(self, **options: Any) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(**options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection.

        >>> other = AsyncClient(url, key)
        >>> await other.close()
        """
        await self._http.aclose()

    async def call(self, call: api.ApiRequest[T]) -> T:
        """Send one request of `lamplighter.api`, for routes without a method here.

        >>> (await client.call(api.get_json("/v1/endpoints/echo")))["name"]
        'echo'
        """
        async with map_http_errors_async(self.url):
            reply = await self._http.request(
                call.method, call.path, params=list(call.params), json=call.body, headers=call.headers
            )
        return api.parse_response(call, reply.status_code, reply.content)

    async def upload(self, path: str | Path, advance: ByteProgress = ignore_progress) -> api.Asset:
        """Do what `Client.upload` does; the file is hashed in a thread.

        >>> (await client.upload("hello.txt")).bytes
        6
        """
        file = Path(path)
        sha256 = await anyio.to_thread.run_sync(self._digest_cache.digest, file)
        size = (await anyio.Path(file).stat()).st_size
        if (await self.call(api.check_assets([DIGEST_SCHEME + sha256]))).present:
            advance(size)
            return api.known_asset(sha256, file.name, size)
        cache_key = resume_key(self.url, sha256)
        plan = UploadPlan(file.name, sha256, size, await anyio.to_thread.run_sync(self._upload_cache.get, cache_key))
        progress = UploadProgress(advance)
        while plan.asset is None:
            await self._send_next(plan, file, progress)
            if plan.is_resumable and plan.upload_path:
                await anyio.to_thread.run_sync(self._upload_cache.put, cache_key, plan.upload_path)
            await anyio.sleep(plan.delay_s)
        await anyio.to_thread.run_sync(self._upload_cache.drop, cache_key)
        return plan.asset

    async def _send_next(self, plan: UploadPlan, file: Path, progress: UploadProgress) -> None:
        request = plan.next_request()
        body = (
            None if request.start is None else _read_chunks_async(file, request.start, progress.start_at(request.start))
        )
        try:
            async with map_http_errors_async(self.url):
                reply = await self._http.request(request.method, request.path, headers=request.headers, content=body)
        except Unreachable as error:
            plan.on_connection_error(error)
        else:
            plan.on_response(reply.status_code, reply.headers, reply.content)

    async def download(self, job: JobView, name: str, to: str | Path, advance: ByteProgress = ignore_progress) -> Path:
        """Do what `Client.download` does.

        >>> job = await client.submit("echo", file="hello.txt", wait=True)
        >>> saved = await client.download(job, job.output.files[0].name, "copy.txt")
        >>> saved.name
        'copy.txt'
        """
        target = Path(to)
        async with (
            map_http_errors_async(self.url),
            self._http.stream("GET", api.job_path(job.id, "files", name)) as reply,
        ):
            if reply.status_code >= 400:
                raise api.error_from_response(reply.status_code, await reply.aread())
            with replace_on_success(target) as part:
                async with await anyio.open_file(part, "wb") as file:
                    async for chunk in reply.aiter_bytes(CHUNK_BYTES):
                        await file.write(chunk)
                        advance(len(chunk))
        return target
