"""`GET /v1/jobs`: the owner's jobs, newest first, out of the index."""

from typing import Annotated

from litestar.params import FromQuery, QueryParameter
from msgspec import Struct

from edge.auth.keys import needs
from edge.routes.given import Asking, Owner, Services, get_or_head
from edge.services.pages import Filters
from schemas.access import Scope
from schemas.errors import FieldError, Refused
from schemas.view import JobView
from schemas.words import Priority, Status


class JobPage(Struct, frozen=True):
    """One page of jobs; `next_cursor` null on the last."""

    jobs: list[JobView]
    next_cursor: str | None = None


def _tags(given: list[str] | None) -> tuple[tuple[str, str], ...]:
    """`["k:v"]` as pairs. Refused input_invalid."""
    tags = []
    for text in given or ():
        name, colon, value = text.partition(":")
        if not colon or not name:
            raise Refused(
                "input_invalid", "?tag= is name:value", errors=(FieldError("$.tag", f"{text[:80]!r} has no colon"),)
            )
        tags.append((name, value))
    return tuple(tags)


@get_or_head("/v1/jobs", guards=[needs(Scope.JOBS_READ)])
async def list_jobs(
    parts: Services,
    owner: Owner,
    asker: Asking,
    status: FromQuery[Status | None] = None,
    endpoint: Annotated[str | None, QueryParameter(max_length=64)] = None,
    priority: FromQuery[Priority | None] = None,
    tag: FromQuery[list[str] | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=500)] = 50,
    cursor: Annotated[str | None, QueryParameter(max_length=200)] = None,
) -> JobPage:
    """The owner's jobs, newest first. Waits until the list holds what this edge wrote before."""
    filters = Filters(status=status, endpoint=endpoint, priority=priority, tags=_tags(tag))
    page = await parts.index.list(owner, filters, limit, cursor)
    return JobPage(await parts.viewer.jobs(page.entries, asker), page.next_cursor)


ROUTES = (list_jobs,)
