"""`AsyncClient`: `lamplighter.sdk.Client` for programs that await.

>>> from lamplighter import AsyncClient
>>> async with AsyncClient(url, key) as client:
...     job = await client.submit("echo", text="hello", wait=True)
>>> job.output.data
{'text': 'hello'}
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.to_thread

from lamplighter import things, wire
from lamplighter.aio_connection import AsyncConnection
from lamplighter.batches import Batch, batch
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


class AsyncClient(AsyncConnection):
    """One edge, for `async with`. Every call raises Rejected or Unreachable."""

    async def submit(
        self,
        endpoint: str,
        *,
        wait: bool = False,
        await_input: bool = False,
        webhook: str | None = None,
        options: dict[str, Any] | None = None,
        **given: Any,
    ) -> JobView:
        """As `Client.submit`.

        >>> job = await client.submit("echo", text="hello", wait=True)
        >>> job.status.value
        'succeeded'
        """
        files = await self._files(endpoint, given)
        if await_input:
            digest, run = self._digests.digest, anyio.to_thread.run_sync
            named = {name: SCHEME + await run(digest, path) for name, path in files.items()}
        else:
            named = {name: (await self.upload(path)).digest for name, path in files.items()}
        job = await self.call(wire.submit(endpoint, given | named, **asked(options, await_input, webhook)))
        for path in files.values() if await_input else ():
            await self.upload(path)
        return await self.wait(job.id) if wait else job

    async def batch(self, jobs: Sequence[Mapping[str, Any]], idempotency_key: str | None = None) -> Batch:
        """As `Client.batch`.

        >>> made = await client.batch([{"endpoint": "echo", "input": {}}])
        >>> len(made.accepted)
        1
        """
        return await self.call(batch(jobs, idempotency_key))

    async def _files(self, endpoint: str, given: dict[str, Any]) -> dict[str, Path]:
        files = local_files(given)
        if not named_as_text(given, files):
            return files
        return meant(given, files, (await self.call(things.endpoint(endpoint)))["input"])

    async def wait(self, job_id: str) -> JobView:
        """As `Client.wait`.

        >>> job = await client.submit("echo", text="hello")
        >>> (await client.wait(job.id)).output.data
        {'text': 'hello'}
        """
        job, patience = await self.call(wire.job(job_id)), Patience()
        while job.status not in FINAL:
            patience.heard()
            job = await self._changed(job, patience)
        return successful(job)

    async def _changed(self, job: JobView, patience: Patience) -> JobView:
        while True:
            try:
                return await self.call(wire.job(job.id, LONG_POLL_S))
            except (Busy, Unreachable) as error:
                patience.spend(error)
                await anyio.sleep(RECONNECT_AFTER_S)

    async def follow(self, job_id: str, after: str | None = None) -> AsyncIterator[wire.Event]:
        """As `Client.follow`.

        >>> job = await client.submit("echo", text="hello", steps=3)
        >>> async for event in client.follow(job.id):
        ...     if event.kind == "log":
        ...         print(event.data["text"], end="")
        first line of job code...
        step 1 of 3
        step 2 of 3
        step 3 of 3
        """
        following = Following(after)
        while not following.final:
            try:
                async for event in self._stream(job_id, following):
                    yield event
                if not following.heard and (await self.job(job_id)).status in FINAL:
                    return  # `after` was the end already
            except (Busy, Unreachable) as error:
                following.patience.spend(error)
            if not following.final:
                await anyio.sleep(RECONNECT_AFTER_S)

    async def _stream(self, job_id: str, following: Following) -> AsyncIterator[wire.Event]:
        path = wire.job_path(job_id, "events")
        with reachable(self.url):
            async with self._http.stream("GET", path, headers=following.headers) as reply:
                if reply.status_code >= 400:
                    raise wire.refusal(reply.status_code, await reply.aread())
                following.opened()
                async for text in reply.aiter_text():
                    for event in following.read(text):
                        yield event

    async def job(self, job_id: str) -> JobView:
        """The job as it stands. Raises NotFound.

        >>> job = await client.submit("echo", text="hello")
        >>> (await client.job(job.id)).input["text"]
        'hello'
        """
        return await self.call(wire.job(job_id))

    async def jobs(self, *, limit: int = 50, **filters: str | None) -> AsyncIterator[JobView]:
        """As `Client.jobs`.

        >>> job = await client.submit("echo", text="hello", options={"options": {"tags": {"project": "y"}}})
        >>> [found.id async for found in client.jobs(tag="project:y")] == [job.id]
        True
        """
        cursor: str | None = None
        while True:
            page = await self.call(wire.jobs(limit, cursor, filters))
            for job in page.jobs:
                yield job
            cursor = page.next_cursor
            if cursor is None:
                return

    async def cancel(self, job_id: str) -> JobView:
        """Stop a job, waiting or running; raises Conflict when it has ended.

        >>> job = await client.submit("echo", seconds=60)
        >>> (await client.cancel(job.id)).status.value
        'cancel...'
        """
        return await self.call(wire.act(job_id, "cancel"))

    async def retry(self, job_id: str) -> JobView:
        """Start a new round of a job that failed, was cancelled or expired.

        >>> job = await client.submit("echo", behave="exit", exit=65)
        >>> with contextlib.suppress(JobFailed):
        ...     await client.wait(job.id)
        >>> (await client.retry(job.id)).round
        2
        """
        return await self.call(wire.act(job_id, "retry"))

    async def delete(self, job_id: str) -> None:
        """Remove a job that has ended, with its outputs and logs.

        >>> job = await client.submit("echo", text="hello", wait=True)
        >>> await client.delete(job.id)
        """
        await self.call(wire.delete(wire.job_path(job_id)))

    async def logs(self, job_id: str) -> str:
        """The job's log.

        >>> job = await client.submit("echo", text="hello", steps=1, wait=True)
        >>> print(await client.logs(job.id))
        first line of job code...
        step 1 of 1
        <BLANKLINE>
        """
        return await self.call(wire.logs(job_id))

    async def usage(self, since: str | None = None, until: str | None = None, owner: str | None = None) -> UsageReport:
        """As `Client.usage`.

        >>> (await client.usage()).jobs > 0
        True
        """
        return await self.call(things.usage(since, until, owner))

    async def hosts(self) -> list[HostView]:
        """The hosts and what they do.

        >>> [host.state for host in await client.hosts() if host.id == "gpu-1"]
        ['online']
        """
        return (await self.call(things.hosts())).hosts

    async def power(self, host: str, want: Literal["on", "off", "auto"], until: str | None = None) -> HostView:
        """As `Client.power`.

        >>> (await client.power("gpu-9", "auto")).hold
        """
        return await self.call(things.power(host, want, until))
