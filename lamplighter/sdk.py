"""Clients of an edge: `Client` blocks, `AsyncClient` (lamplighter.aio) awaits; the same names do the same.

>>> from lamplighter import Client
>>> with Client(url, key) as client:
...     job = client.submit("echo", text="hello", wait=True)
>>> job.output.data
{'text': 'hello'}

The examples are run against a real edge by tests/e2e/test_examples.py.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lamplighter import things, wire
from lamplighter.batches import Batch, batch
from lamplighter.connection import Connection
from lamplighter.errors import Busy, Unreachable
from lamplighter.shared import (
    LONG_POLL_S,
    RECONNECT_AFTER_S,
    Following,
    Patience,
    asked,
    local_files,
    meant,
    named_as_text,
    reachable,
    successful,
)
from schemas.asset import SCHEME
from schemas.host import HostView
from schemas.usage import UsageReport
from schemas.view import JobView
from schemas.words import FINAL


class Client(Connection):
    """One edge. Use it in a `with`, or call `close`. Every call raises Rejected or Unreachable."""

    def submit(
        self,
        endpoint: str,
        *,
        wait: bool = False,
        await_input: bool = False,
        webhook: str | None = None,
        options: dict[str, Any] | None = None,
        **given: Any,
    ) -> JobView:
        """Submit a job. A Path is uploaded first, and so is a text that names a local file where a file is taken.

        With `await_input` the job is accepted first and the files follow, so that a dark host wakes meanwhile.
        `webhook` is the URL that its states are delivered to. `options` are those of `wire.submit`: job_id,
        idempotency_key, priority, and `options` for further fields of the body. With `wait` the job has ended when this
        returns; raises JobFailed unless it succeeded.

        >>> job = client.submit("echo", text="hello", file="hello.txt", wait=True)
        >>> job.output.data, job.output.files[0].bytes
        ({'text': 'hello'}, 6)
        """
        files = self._files(endpoint, given)
        if await_input:
            named = {name: SCHEME + self._digests.digest(path) for name, path in files.items()}
        else:
            named = {name: self.upload(path).digest for name, path in files.items()}
        job = self.call(wire.submit(endpoint, given | named, **asked(options, await_input, webhook)))
        for path in files.values() if await_input else ():
            self.upload(path)
        return self.wait(job.id) if wait else job

    def batch(self, jobs: Sequence[Mapping[str, Any]], idempotency_key: str | None = None) -> Batch:
        """Submit up to 1000 jobs, each a body as `POST /v1/jobs` takes it; what is wrong with one rejects no other.

        >>> made = client.batch([{"endpoint": "echo", "input": {}}, {"endpoint": "nowhere", "input": {}}])
        >>> len(made.accepted), made.rejected[0].problem.code
        (1, 'endpoint_unknown')
        """
        return self.call(batch(jobs, idempotency_key))

    def _files(self, endpoint: str, given: dict[str, Any]) -> dict[str, Path]:
        files = local_files(given)
        if not named_as_text(given, files):
            return files
        return meant(given, files, self.call(things.endpoint(endpoint))["input"])

    def wait(self, job_id: str) -> JobView:
        """The job once it has ended; raises JobFailed unless it succeeded. A restart of the edge is waited out.

        >>> job = client.submit("echo", behave="exit", exit=65)
        >>> try:
        ...     client.wait(job.id)
        ... except JobFailed as failed:
        ...     print(failed.job.error.code, failed.job.error.blame)
        bad_input client
        """
        job, patience = self.call(wire.job(job_id)), Patience()
        while job.status not in FINAL:
            patience.heard()
            job = self._changed(job, patience)
        return successful(job)

    def _changed(self, job: JobView, patience: Patience) -> JobView:
        """The job when it has ended, or a while later."""
        while True:
            try:
                return self.call(wire.job(job.id, LONG_POLL_S))
            except (Busy, Unreachable) as error:
                patience.spend(error)
                time.sleep(RECONNECT_AFTER_S)

    def follow(self, job_id: str, after: str | None = None) -> Iterator[wire.Event]:
        """What the job says, until its end; resumes behind the last event when the connection breaks.

        An edge that was never there, or is silent for five minutes, is Unreachable.
        Give the `id` of the last event that was seen as `after` to go on behind it in another process.

        >>> job = client.submit("echo", text="hello", steps=3)
        >>> for event in client.follow(job.id):
        ...     if event.kind == "log":
        ...         print(event.data["text"], end="")
        first line of job code...
        step 1 of 3
        step 2 of 3
        step 3 of 3
        >>> event.job.status.value
        'succeeded'
        """
        following = Following(after)
        while not following.final:
            try:
                yield from self._stream(job_id, following)
                if not following.heard and self.job(job_id).status in FINAL:
                    return  # `after` was the end already
            except (Busy, Unreachable) as error:
                following.patience.spend(error)
            if not following.final:
                time.sleep(RECONNECT_AFTER_S)

    def _stream(self, job_id: str, following: Following) -> Iterator[wire.Event]:
        path = wire.job_path(job_id, "events")
        with reachable(self.url), self._http.stream("GET", path, headers=following.headers) as reply:
            if reply.status_code >= 400:
                raise wire.refusal(reply.status_code, reply.read())
            following.opened()
            for text in reply.iter_text():
                yield from following.read(text)

    def job(self, job_id: str) -> JobView:
        """The job as it stands. Raises NotFound.

        >>> job = client.submit("echo", text="hello")
        >>> client.job(job.id).input["text"]
        'hello'
        """
        return self.call(wire.job(job_id))

    def jobs(self, *, limit: int = 50, **filters: str | None) -> Iterator[JobView]:
        """Jobs, newest first, page after page; `filters`: status, endpoint, priority, tag (`k:v`).

        >>> job = client.submit("echo", text="hello", options={"options": {"tags": {"project": "x"}}})
        >>> [found.id for found in client.jobs(tag="project:x")] == [job.id]
        True
        """
        cursor: str | None = None
        while True:
            page = self.call(wire.jobs(limit, cursor, filters))
            yield from page.jobs
            cursor = page.next_cursor
            if cursor is None:
                return

    def cancel(self, job_id: str) -> JobView:
        """Stop a job, waiting or running; raises Conflict when it has ended.

        >>> job = client.submit("echo", seconds=60)
        >>> client.cancel(job.id).status.value
        'cancel...'
        """
        return self.call(wire.act(job_id, "cancel"))

    def retry(self, job_id: str) -> JobView:
        """Start a new round of a job that failed, was cancelled or expired, with the same id and inputs.

        >>> job = client.submit("echo", behave="exit", exit=65)
        >>> with contextlib.suppress(JobFailed):
        ...     client.wait(job.id)
        >>> client.retry(job.id).round
        2
        """
        return self.call(wire.act(job_id, "retry"))

    def delete(self, job_id: str) -> None:
        """Remove a job that has ended, with its outputs and logs.

        >>> job = client.submit("echo", text="hello", wait=True)
        >>> client.delete(job.id)
        >>> try:
        ...     client.job(job.id)
        ... except NotFound as refused:
        ...     print(refused.problem.code)
        not_found
        """
        self.call(wire.delete(wire.job_path(job_id)))

    def logs(self, job_id: str) -> str:
        """The job's log.

        >>> job = client.submit("echo", text="hello", steps=1, wait=True)
        >>> print(client.logs(job.id))
        first line of job code...
        step 1 of 1
        <BLANKLINE>
        """
        return self.call(wire.logs(job_id))

    def usage(self, since: str | None = None, until: str | None = None, owner: str | None = None) -> UsageReport:
        """Jobs, GPU seconds, energy and money between two times (RFC 3339), of the last 30 days if left out.

        Of the key's owner; with an admin key of everybody, or of `owner`.

        >>> report = client.usage(since="2026-11-01T00:00:00Z")
        >>> report.jobs > 0, report.cost.currency
        (True, '...')
        """
        return self.call(things.usage(since, until, owner))

    def hosts(self) -> list[HostView]:
        """The hosts and what they do.

        >>> [host.state for host in client.hosts() if host.id == "gpu-1"]
        ['online']
        """
        return self.call(things.hosts()).hosts

    def power(self, host: str, want: Literal["on", "off", "auto"], until: str | None = None) -> HostView:
        """Hold a declared host on or off, until a time or until `auto` leaves it to the law again.

        Off drains first, it never cuts a job. Needs the scope `power`.

        >>> client.power("gpu-9", "off").hold["want"]
        'off'
        >>> client.power("gpu-9", "auto").hold
        """
        return self.call(things.power(host, want, until))
