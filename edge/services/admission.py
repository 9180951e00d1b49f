"""Whether a request may become a job, and the record that it then is (DESIGN 3, "Submit", step 2)."""

from typing import Any

from edge.outbound.targets import Allowed, UrlRefused, target
from edge.services.assets import Assets
from edge.services.catalog import Catalog
from edge.services.clock import Clock, Entropy
from edge.services.gate import Gate
from edge.services.inputs import Given, assets_missing, check_input
from edge.services.quotas import Quotas
from edge.services.submission import make_job, read_body
from schemas.errors import FieldError, Refused
from schemas.job import TRACE_CHARACTERS, Job, JobKey, Submission


def check_url(url: str, path: str, allowed: Allowed) -> None:
    """Raises Refused `url_refused` for a URL that no answer of DNS could make good."""
    try:
        target(url, allowed)
    except UrlRefused as error:
        fault = FieldError(path, str(error))
        raise Refused("url_refused", f"{path}: {fault.message}", errors=(fault,)) from error


class Admission:
    """Checks bodies. Every method raises Refused."""

    def __init__(  # noqa: PLR0913, PLR0917 - the services it asks
        self,
        gate: Gate,
        catalog: Catalog,
        assets: Assets,
        allowed: Allowed,
        clock: Clock,
        entropy: Entropy,
        quotas: Quotas,
    ) -> None:
        self._gate = gate
        self._catalog = catalog
        self._assets = assets
        self._allowed = allowed
        self._clock = clock
        self._entropy = entropy
        self.quotas = quotas

    async def vet(self, body: dict[str, Any]) -> None:
        """What no uploaded file can make acceptable is refused, so that none is kept for it."""
        submission = read_body(body)
        self._check_urls(submission, await check_input(self._catalog.get(submission.endpoint), submission.input))

    def _check_urls(self, submission: Submission, given: Given) -> None:
        if submission.webhook is not None:
            check_url(submission.webhook.url, "$.webhook.url", self._allowed)
        for fetch in given.remote:
            check_url(fetch.url, f"$.input{fetch.path.removeprefix('$')}", self._allowed)

    async def admit(self, key: JobKey, digest: str, body: dict[str, Any], trace_id: str | None) -> Job:
        """The record that `body` makes; `digest` is the request's. Nothing is written, but its assets are touched."""
        await self._gate.check()
        submission = read_body(body)
        endpoint = self._catalog.get(submission.endpoint)
        given = await check_input(endpoint, submission.input)
        self._check_urls(submission, given)
        missing = await self._assets.missing(key.owner, given.digests)
        if missing and not submission.await_input:
            raise assets_missing(missing)
        trace = submission.trace_id or (trace_id or "")[:TRACE_CHARACTERS] or self._entropy(16).hex()
        return make_job(key, digest, endpoint, submission, given, missing=missing, trace_id=trace, at=self._clock())
