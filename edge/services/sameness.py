"""Whether another door's words for a job mean the job that is there: the same work, however it was asked for."""

from typing import Any

from bus.port import Entry
from edge.services.catalog import Catalog
from edge.services.inputs import check_input
from edge.services.submission import read_body
from schemas.job import Job


def means_the_same(catalog: Catalog, history: list[Entry], body: dict[str, Any]) -> bool:
    """Whether `body` asks for what the job of `history` is.

    The endpoint and the input count, its defaults filled in, files by their digests; limits, priority and tags do not.
    The input as it ever was counts: a file that was fetched has taken the place of its URL. Raises Refused.
    """
    submission = read_body(body)
    endpoint = catalog.get(submission.endpoint)
    given = check_input(endpoint, submission.input).input

    def same(job: Job) -> bool:
        return job.endpoint == endpoint.name and job.input == given

    return any(same(entry.recorded.job) for entry in history)
