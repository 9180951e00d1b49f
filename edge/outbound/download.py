"""A file behind a URL: redirects followed under the guard, its body as it comes, every way it can fail named."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import PurePosixPath
from urllib.parse import unquote

import httpx
from msgspec import Struct

from edge.outbound.guard import send

REDIRECTS = 3
REDIRECTING = {301, 302, 303, 307, 308}
PASSING = {408, 425, 429}  # besides 5xx: asking again may help
PIECE = 256 * 1024


class DownloadFailed(Exception):
    """The file was not got. `passing`: another try may get it."""

    def __init__(self, message: str, *, passing: bool) -> None:
        self.passing = passing
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
        async with _answer(client, url) as response:
            _check(response)
            yield Download(
                name=PurePosixPath(unquote(response.url.path)).name or "file",
                media_type=response.headers.get("content-type"),
                length=_length(response),
                chunks=_chunks(response),
            )
    except httpx.HTTPError as error:
        raise DownloadFailed(_said(error), passing=True) from error


@asynccontextmanager
async def _answer(client: httpx.AsyncClient, url: str) -> AsyncIterator[httpx.Response]:
    """The first answer that is no redirect."""
    request = client.build_request("GET", url)
    for _ in range(REDIRECTS + 1):
        response = await send(client, request)
        try:
            if response.status_code not in REDIRECTING or response.next_request is None:
                yield response
                return
            request = client.build_request("GET", response.next_request.url)  # nothing of the first goes on
        finally:
            await response.aclose()
    raise DownloadFailed(f"more than {REDIRECTS} redirects", passing=False)


def _check(response: httpx.Response) -> None:
    status = response.status_code
    if status != httpx.codes.OK:
        passing = status >= httpx.codes.INTERNAL_SERVER_ERROR or status in PASSING
        raise DownloadFailed(f"its server answered {status}", passing=passing)
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding not in {"identity", ""}:
        # Unpacked it could be of any size, and stored as it is it would not be the file.
        raise DownloadFailed(f"its server sent it as {coding[:40]} although identity was asked for", passing=False)


def _length(response: httpx.Response) -> int | None:
    text = response.headers.get("content-length", "")
    return int(text) if text.isdecimal() else None


async def _chunks(response: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.aiter_raw(PIECE):
            yield chunk
    except httpx.HTTPError as error:
        raise DownloadFailed(_said(error), passing=True) from error


def _said(error: httpx.HTTPError) -> str:
    return f"its server does not answer properly ({error or type(error).__name__})"[:300]
