"""Whether a request may become a job, and the record that it then is (DESIGN 3, "Submit", step 2)."""

from typing import Any

from edge.services.assets import Assets
from edge.services.catalog import Catalog
from edge.services.clock import Clock, Entropy
from edge.services.gate import Gate
from edge.services.inputs import assets_missing, check_input
from edge.services.submission import make_job, read_body
from schemas.job import TRACE_CHARACTERS, Job, JobKey


class Admission:
    """Checks bodies. Every method raises Refused."""

    def __init__(self, gate: Gate, catalog: Catalog, assets: Assets, clock: Clock, entropy: Entropy) -> None:
        self._gate = gate
        self._catalog = catalog
        self._assets = assets
        self._clock = clock
        self._entropy = entropy

    def vet(self, body: dict[str, Any]) -> None:
        """What no uploaded file can make acceptable is refused, so that none is kept for it."""
        submission = read_body(body)
        check_input(self._catalog.get(submission.endpoint), submission.input)

    async def admit(self, key: JobKey, digest: str, body: dict[str, Any], trace_id: str | None) -> Job:
        """The record that `body` makes; `digest` is the request's. Nothing is written, but its assets are touched."""
        await self._gate.check()
        submission = read_body(body)
        endpoint = self._catalog.get(submission.endpoint)
        given = check_input(endpoint, submission.input)
        missing = await self._assets.missing(key.owner, given.digests)
        if missing and not submission.await_input:
            raise assets_missing(missing)
        trace = submission.trace_id or (trace_id or "")[:TRACE_CHARACTERS] or self._entropy(16).hex()
        return make_job(key, digest, endpoint, submission, given, missing=missing, trace_id=trace, at=self._clock())
