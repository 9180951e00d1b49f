"""Answering with bytes out of the asset store."""

from collections.abc import MutableMapping
from typing import Any, cast

from litestar.types import ASGIApp
from starlette.responses import PlainTextResponse

from edge.parts import Parts
from edge.routes.given import AnyRequest
from edge.store.serve import answer
from schemas.errors import Refused


async def download(request: AnyRequest, parts: Parts, sha256: str, name: str, media_type: str) -> ASGIApp:
    """The file, ranges and revalidation included. Refused not_found when the store has it no more."""
    response = await answer(parts.store, sha256, name, media_type, cast("MutableMapping[str, Any]", request.scope))
    if response is None:
        raise Refused("not_found", "the file is gone from the store: its job must run again to make it anew")
    return cast("ASGIApp", response)  # the two libraries spell the same ASGI types differently


def plain(text: str) -> ASGIApp:
    """A text as an answer of its own."""
    return cast("ASGIApp", PlainTextResponse(text))
