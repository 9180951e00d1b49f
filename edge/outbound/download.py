"""Download of a file by URL: redirects pass the SSRF guard, and every failure says whether a retry may help."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import PurePosixPath
from typing import Annotated
from urllib.parse import unquote

import httpx2
from anyio import CapacityLimiter
from msgspec import Meta, Struct

from edge.outbound.ssrf_guard import send_request

REDIRECT_LIMIT = 3
REDIRECT_STATUSES = {301, 302, 303, 307, 308}
TRANSIENT_STATUSES = {408, 425, 429}  # besides 5xx: asking again may help
CHUNK_BYTES = 256 * 1024


class DownloadFailed(Exception):
    """The file could not be downloaded. `is_transient`: another attempt may succeed."""

    def __init__(self, message: str, *, is_transient: bool) -> None:
        self.is_transient = is_transient
        super().__init__(message)


class Download(Struct, frozen=True):
    """A running download. `name` and `media_type`: as the server says. `length`: in bytes, None if not declared."""

    name: str
    media_type: str | None
    length: int | None
    chunks: AsyncIterator[bytes]


@asynccontextmanager
async def download(client: httpx2.AsyncClient, url: str) -> AsyncIterator[Download]:
    """Request `url`. Raises UrlRefused, DownloadFailed; reading the chunks raises DownloadFailed."""
    try:
        async with _follow_redirects(client, url) as response:
            _check_response(response)
            yield Download(
                name=PurePosixPath(unquote(response.url.path)).name or "file",
                media_type=response.headers.get("content-type"),
                length=_content_length(response),
                chunks=_stream_body(response),
            )
    except httpx2.HTTPError as error:
        raise DownloadFailed(_describe_error(error), is_transient=True) from error


@asynccontextmanager
async def _follow_redirects(client: httpx2.AsyncClient, url: str) -> AsyncIterator[httpx2.Response]:
    """Yield the first response that is not a redirect."""
    request = client.build_request("GET", url)
    for _ in range(REDIRECT_LIMIT + 1):
        response = await send_request(client, request)
        try:
            if response.status_code not in REDIRECT_STATUSES or response.next_request is None:
                yield response
                return
            request = client.build_request(
                "GET", response.next_request.url
            )  # no header of the first request is passed on
        finally:
            await response.aclose()
    raise DownloadFailed(f"more than {REDIRECT_LIMIT} redirects", is_transient=False)


def _check_response(response: httpx2.Response) -> None:
    status = response.status_code
    if status != httpx2.codes.OK:
        is_transient = status >= httpx2.codes.INTERNAL_SERVER_ERROR or status in TRANSIENT_STATUSES
        raise DownloadFailed(f"its server answered {status}", is_transient=is_transient)
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding not in {"identity", ""}:
        # The decoded body could have any size, and the encoded body is not the file.
        raise DownloadFailed(f"its server sent it as {coding[:40]} although identity was requested", is_transient=False)


def _content_length(response: httpx2.Response) -> int | None:
    text = response.headers.get("content-length", "")
    return int(text) if text.isdecimal() else None


async def _stream_body(response: httpx2.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.aiter_raw(CHUNK_BYTES):
            yield chunk
    except httpx2.HTTPError as error:
        raise DownloadFailed(_describe_error(error), is_transient=True) from error


def _describe_error(error: httpx2.HTTPError) -> str:
    return f"its server does not answer properly ({error or type(error).__name__})"[:300]


class OutboundSettings(Struct, frozen=True):
    """Settings for requests to URLs that clients name."""

    allow: tuple[str, ...] = ()
    """Hosts that input URLs and webhooks may name although their addresses are not public, as `host` or `host:port`."""
    fetch_timeout_s: Annotated[float, Meta(gt=0)] = 1800.0
    """How long the download of one file may take, all attempts included."""
    fetches: Annotated[int, Meta(ge=1)] = 8
    """Downloads at the same time."""
    fetches_of_owner: Annotated[int, Meta(ge=1)] = 2
    """Downloads at the same time for one owner."""


class PerOwnerLimiter:
    """Limit concurrent work to `total`, and to `per_owner` for each owner.

    A task acquires a slot of its owner first, and only then waits for a common slot. One owner therefore has at most
    `per_owner` tasks in the common queue and cannot crowd out the others.
    """

    def __init__(self, total: int, per_owner: int) -> None:
        self._total = CapacityLimiter(total)
        self._limit_per_owner = per_owner
        self._by_owner: dict[str, CapacityLimiter] = {}

    @asynccontextmanager
    async def slot(self, owner: str) -> AsyncIterator[None]:
        """Hold one slot of `owner` while the block runs."""
        own = self._by_owner.setdefault(owner, CapacityLimiter(self._limit_per_owner))
        try:
            # The borrower is an object of its own, because one task may hold several slots.
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
