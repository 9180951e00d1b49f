"""A client that records every answer, and repeats a request until it is answered."""

import hashlib
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import httpx2

from lamplighter import AsyncClient, api
from lamplighter.api import LamplighterError, Rejected, Unreachable
from schemas.job import FINAL_STATUSES
from schemas.job_view import JobView
from tests.chaos.evidence import JobShown, OutputDownloaded, SubmitAccepted
from tests.chaos.history import ObservationLog

T = TypeVar("T")

RETRY_DELAY_S = 0.2
RETRY_STATUSES = frozenset({429, 502, 503, 507})  # with these the edge asks to try again later
HOLD_S = 5.0
BLOCKS = 4096  # as in the endpoint `stamped`
ENDPOINT = "stamped"


def expected_digest(text: str) -> str:
    """Return the digest of the output of `stamped` for `text`."""
    return hashlib.sha256(text.encode() * BLOCKS).hexdigest()


class RecordingClient:
    """One client, for `async with`. It sends one request at a time, so revisions may never go back."""

    def __init__(self, name: str, url: str, key: str, history: ObservationLog) -> None:
        self.name, self.url, self.key = name, url, key
        self.history = history
        self._sdk = AsyncClient(url, key, cache=Path("/dev/null"))

    async def __aenter__(self) -> "RecordingClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._sdk.close()

    async def submit(
        self, name: str, input_: dict[str, Any], *, endpoint: str = ENDPOINT, impatient_s: float | None = None
    ) -> str:
        """Submit under the idempotency key `name` until it is accepted; return the job's id.

        `impatient_s`: the first request is dropped after that time, whatever became of it.
        """
        return await self._named(name, api.submit_job(endpoint, input_, idempotency_key=name), impatient_s)

    async def put(self, job_id: str, input_: dict[str, Any], *, impatient_s: float | None = None) -> str:
        """Submit under an id that the client chooses."""
        return await self._named(job_id, api.submit_job(ENDPOINT, input_, job_id=job_id), impatient_s)

    async def _named(self, name: str, call: api.ApiRequest[JobView], impatient_s: float | None) -> str:
        with anyio.move_on_after(impatient_s or 0):
            self._accepted(name, await self._retry_rejected(call))
        return self._accepted(name, await self._retry_rejected(call))

    async def read_job(self, job_id: str, wait_s: float = 0.0) -> JobView:
        """Return the job as it is, or as it ended within `wait_s`."""
        return self._read(await self._retry_rejected(api.get_job(job_id, wait_s)))

    async def wait_for(self, job_id: str, holds: Callable[[JobView], bool], wait_s: float = 0.0) -> JobView:
        """Return the job as soon as `holds` is true of it."""
        job = await self.read_job(job_id, wait_s)
        while not holds(job):
            await anyio.sleep(RETRY_DELAY_S)
            job = await self.read_job(job_id, wait_s)
        return job

    async def wait_until_ended(self, job_id: str) -> JobView:
        """Return the job once it has ended."""
        return await self.wait_for(job_id, lambda job: job.status in FINAL_STATUSES, HOLD_S)

    async def post_action(self, job_id: str, verb: str) -> JobView | None:
        """Send `cancel` or `retry`; return None when it is too late or too early for that."""
        try:
            return self._read(await self._retry_rejected(api.post_job_action(job_id, verb)))
        except Rejected as refused:
            if refused.problem.code not in {"job_final", "job_not_final"}:
                raise
            return None

    async def fetch(self, job: JobView, text: str) -> None:
        """Download the output that the job made from `text`."""
        for file in job.output.files if job.output else ():
            got = await self._retry_unreachable(partial(self._bytes, job.id, file.name))
            digest = hashlib.sha256(got).hexdigest()
            self.history.note(OutputDownloaded(job.id, file.name, file.sha256, digest, expected_digest(text)))

    async def _bytes(self, job_id: str, name: str) -> bytes:
        try:
            answer = await self._sdk._http.get(api.job_path(job_id, "files", name))
        except httpx2.HTTPError as error:
            raise Unreachable(str(error)) from error
        if answer.status_code >= 400:
            raise api.error_from_response(answer.status_code, answer.content)
        return answer.content

    def _accepted(self, name: str, job: JobView) -> str:
        self.history.note(SubmitAccepted(self.name, name, job.id))
        self._read(job)
        return job.id

    def _read(self, job: JobView) -> JobView:
        self.history.note(JobShown(self.name, job.id, job.revision, job.status, job.round))
        return job

    async def _retry_rejected(self, call: api.ApiRequest[JobView]) -> JobView:
        return await self._retry_unreachable(lambda: self._sdk.call(call))

    async def _retry_unreachable(self, ask: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await ask()
            except LamplighterError as error:
                if isinstance(error, Rejected) and error.problem.status not in RETRY_STATUSES:
                    raise
            await anyio.sleep(RETRY_DELAY_S)
