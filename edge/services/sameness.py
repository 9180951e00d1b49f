"""A job that came in other words, or by another door, under a code it already has: the same work is the same job."""

from collections.abc import Sequence
from typing import Any

from bus.port import Entry, Records
from edge.services.catalog import Catalog
from edge.services.inputs import check_input
from edge.services.intake import Accepted, Intake
from edge.services.refusals import refusing
from edge.services.submission import read_body
from schemas.errors import Refused
from schemas.events import Submitted
from schemas.job import JobKey


async def submit_under(
    intake: Intake, records: Records, catalog: Catalog, key: JobKey, body: dict[str, Any], **named: str
) -> Accepted:
    """`Intake.submit` under a code that the client chose, `named` being more for it.

    A job that is there under that code is answered when it is the same work. Raises Refused as `Intake.submit` does.
    """
    try:
        return await intake.submit(key.owner, body, job_id=key.id, **named)
    except Refused as refused:
        if refused.code != "conflict":
            raise
        with refusing():
            past = await records.history(key)
        if not past or not await means_the_same(catalog, past, body):
            raise
        return Accepted(past[-1], replayed=True)


async def means_the_same(catalog: Catalog, past: Sequence[Entry], body: dict[str, Any]) -> bool:
    """Whether `body` asks for the work of the job whose revisions `past` holds.

    The endpoint and the input count, its defaults filled in, files by their digests; limits, priority and tags do not.
    The input as it was since the last submit counts: a file that was fetched has taken the place of its URL. Raises
    Refused.
    """
    submission = read_body(body)
    endpoint = catalog.get(submission.endpoint)
    given = (await check_input(endpoint, submission.input)).input
    begun = max((n for n, entry in enumerate(past) if isinstance(entry.recorded.event, Submitted)), default=0)
    jobs = (entry.recorded.job for entry in past[begun:])
    return any(job.endpoint == endpoint.name and job.input == given for job in jobs)
