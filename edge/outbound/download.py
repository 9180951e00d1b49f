"""A file behind a URL: redirects followed under the guard, its body as it comes, every way it can fail named."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import PurePosixPath
from typing import Annotated
from urllib.parse import unquote

import httpx
from anyio import CapacityLimiter
from msgspec import Meta, Struct

from edge.outbound.ssrf_guard import send_request

REDIRECT_LIMIT = 3
REDIRECT_STATUSES = {301, 302, 303, 307, 308}
TRANSIENT_STATUSES = {408, 425, 429}  # besides 5xx: asking again may help
CHUNK_BYTES = 256 * 1024


class DownloadFailed(Exception):
    """The file was not got. `passing`: another try may get it."""

    def __init__(self, message: str, *, passing: bool) -> None:
        self.is_transient = passing
        super().__init__(message)


class Download(Struct, frozen=True):
    """A file under way. `name` and `media_type` are its server's; `length` in bytes, None: it does not say."""

    name: str
    media_type: str | None
    length: int | None
    chunks: AsyncIterator[bytes]


@asynccontextmanager
async def download(client: httpx.AsyncClient, url: str) -> AsyncIterator[Download]:
    """Ask for `url`. Raises UrlRefused, DownloadFailed; reading the chunks raises DownloadFailed."""
    try:
        async with _follow_redirects(client, url) as response:
            _check_response(response)
            yield Download(
                name=PurePosixPath(unquote(response.url.path)).name or "file",
                media_type=response.headers.get("content-type"),
                length=_content_length(response),
                chunks=_stream_body(response),
            )
    except httpx.HTTPError as error:
        raise DownloadFailed(_describe_error(error), passing=True) from error


@asynccontextmanager
async def _follow_redirects(client: httpx.AsyncClient, url: str) -> AsyncIterator[httpx.Response]:
    """The first answer that is no redirect."""
    request = client.build_request("GET", url)
    for _ in range(REDIRECT_LIMIT + 1):
        response = await send_request(client, request)
        try:
            if response.status_code not in REDIRECT_STATUSES or response.next_request is None:
                yield response
                return
            request = client.build_request("GET", response.next_request.url)  # nothing of the first goes on
        finally:
            await response.aclose()
    raise DownloadFailed(f"more than {REDIRECT_LIMIT} redirects", passing=False)


def _check_response(response: httpx.Response) -> None:
    status = response.status_code
    if status != httpx.codes.OK:
        passing = status >= httpx.codes.INTERNAL_SERVER_ERROR or status in TRANSIENT_STATUSES
        raise DownloadFailed(f"its server answered {status}", passing=passing)
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding not in {"identity", ""}:
        # Unpacked it could be of any size, and stored as it is it would not be the file.
        raise DownloadFailed(f"its server sent it as {coding[:40]} although identity was asked for", passing=False)


def _content_length(response: httpx.Response) -> int | None:
    text = response.headers.get("content-length", "")
    return int(text) if text.isdecimal() else None


async def _stream_body(response: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.aiter_raw(CHUNK_BYTES):
            yield chunk
    except httpx.HTTPError as error:
        raise DownloadFailed(_describe_error(error), passing=True) from error


def _describe_error(error: httpx.HTTPError) -> str:
    return f"its server does not answer properly ({error or type(error).__name__})"[:300]


# MERGED edge/outbound/settings.py: What an operator may say about requests on a client's word.


class OutboundSettings(Struct, frozen=True):
    """`allow`: hosts that are opened although their addresses are not public, as `host` or `host:port`.

    `fetch_timeout_s`: how long a file may take in all, tries included. `fetches` at a time, `fetches_of_owner` of them
    for one owner.
    """

    allow: tuple[str, ...] = ()
    fetch_timeout_s: Annotated[float, Meta(gt=0)] = 1800.0
    fetches: Annotated[int, Meta(ge=1)] = 8
    fetches_of_owner: Annotated[int, Meta(ge=1)] = 2


# MERGED edge/outbound/turns.py: Bounded work for many owners: so much at a time in all, so much for each, so that
# none crowds out another.


class PerOwnerLimiter:
    """An owner waits for its own places first, and only with those in hand in the common line: one owner stands there
    with at most `each` others wait behind."""

    def __init__(self, total: int, each: int) -> None:
        self._total = CapacityLimiter(total)
        self._limit_per_owner = each
        self._by_owner: dict[str, CapacityLimiter] = {}

    @asynccontextmanager
    async def slot(self, owner: str) -> AsyncIterator[None]:
        """One place, for as long as the block runs."""
        own = self._by_owner.setdefault(owner, CapacityLimiter(self._limit_per_owner))
        try:
            # Objects as borrowers: a task may take several turns.
            async with _acquire_slot(own), _acquire_slot(self._total):
                yield
        finally:
            if not own.borrowed_tokens and not own.statistics().tasks_waiting:
                self._by_owner.pop(owner, None)


@asynccontextmanager
async def _acquire_slot(limiter: CapacityLimiter) -> AsyncIterator[None]:
    borrower = object()
    await limiter.acquire_on_behalf_of(borrower)
    try:
        yield
    finally:
        limiter.release_on_behalf_of(borrower)
