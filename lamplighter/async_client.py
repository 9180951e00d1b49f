"""`AsyncClient`: `lamplighter.client.Client` for programs that await.

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

from lamplighter import api
from lamplighter.api import Batch, Busy, Unreachable, submit_batch, submit_options
from lamplighter.files import find_local_files, has_text_path, select_asset_inputs
from lamplighter.follow import Event, FollowState, ReconnectBudget, long_poll_s, require_success, wait_end
from lamplighter.transport import AsyncEdgeTransport, map_http_errors_async
from schemas.asset import DIGEST_SCHEME
from schemas.host import HostView
from schemas.job import FINAL_STATUSES
from schemas.job_view import JobView, UsageReport


class AsyncClient(AsyncEdgeTransport):
    """A connection to one edge, for `async with`. Every call may raise Rejected or Unreachable."""

    async def submit(  # noqa: PLR0913 - what a job may have
        self,
        endpoint: str,
        *,
        wait: bool = False,
        await_input: bool = False,
        webhook: str | None = None,
        tags: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        options: dict[str, Any] | None = None,
        **inputs: Any,
    ) -> JobView:
        """Do what `Client.submit` does.

        >>> job = await client.submit("echo", text="hello", wait=True)
        >>> job.status.value
        'succeeded'
        """
        files = await self._resolve_files(endpoint, inputs)
        if await_input:
            digest, run = self._digest_cache.digest, anyio.to_thread.run_sync
            named = {name: DIGEST_SCHEME + await run(digest, path) for name, path in files.items()}
        else:
            named = {name: (await self.upload(path)).digest for name, path in files.items()}
        job = await self.call(
            api.submit_job(endpoint, inputs | named, **submit_options(options, await_input, webhook, tags))
        )
        for path in files.values() if await_input else ():
            await self.upload(path)
        return await self.wait(job.id, timeout_s) if wait else job

    async def batch(self, jobs: Sequence[Mapping[str, Any]], idempotency_key: str | None = None) -> Batch:
        """Do what `Client.batch` does.

        >>> made = await client.batch([{"endpoint": "echo", "input": {}}])
        >>> len(made.accepted)
        1
        """
        return await self.call(submit_batch(jobs, idempotency_key))

    async def _resolve_files(self, endpoint: str, inputs: dict[str, Any]) -> dict[str, Path]:
        files = find_local_files(inputs)
        if not has_text_path(inputs, files):
            return files
        return select_asset_inputs(inputs, files, (await self.call(api.get_endpoint(endpoint)))["input"])

    async def wait(self, job_id: str, timeout_s: float | None = None) -> JobView:
        """Do what `Client.wait` does.

        >>> job = await client.submit("echo", text="hello")
        >>> (await client.wait(job.id)).output.data
        {'text': 'hello'}
        """
        ends_at, budget = wait_end(timeout_s), ReconnectBudget()
        job = await self.call(api.get_job(job_id))
        while job.status not in FINAL_STATUSES:
            budget.reset()
            job = await self._long_poll(job, budget, ends_at)
        return require_success(job)

    async def _long_poll(self, job: JobView, budget: ReconnectBudget, ends_at: float | None) -> JobView:
        while True:
            try:
                return await self.call(api.get_job(job.id, long_poll_s(ends_at, job)))
            except (Busy, Unreachable) as error:
                budget.spend(error)
                await anyio.sleep(budget.delay_s)

    async def follow(self, job_id: str, after: str | None = None) -> AsyncIterator[Event]:
        """Do what `Client.follow` does.

        >>> job = await client.submit("echo", text="hello", steps=3)
        >>> async for event in client.follow(job.id):
        ...     if event.kind == "log":
        ...         print(event.data["text"], end="")
        first line of job code...
        step 1 of 3
        step 2 of 3
        step 3 of 3
        """
        state = FollowState(after)
        while not state.is_final:
            try:
                async for event in self._stream_events(job_id, state):
                    yield event
                if not state.has_events and (await self.job(job_id)).status in FINAL_STATUSES:
                    return  # `after` was the last event
            except (Busy, Unreachable) as error:
                state.budget.spend(error)
            if not state.is_final:
                await anyio.sleep(state.budget.delay_s)

    async def _stream_events(self, job_id: str, state: FollowState) -> AsyncIterator[Event]:
        path = api.job_path(job_id, "events")
        async with (
            map_http_errors_async(self.url),
            self._http.stream("GET", path, headers=state.headers) as reply,
        ):
            if reply.status_code >= 400:
                raise api.error_from_response(reply.status_code, await reply.aread())
            state.start_connection()
            async for text in reply.aiter_text():
                for event in state.read(text):
                    yield event

    async def job(self, job_id: str) -> JobView:
        """Return the job. Raises NotFound.

        >>> job = await client.submit("echo", text="hello")
        >>> (await client.job(job.id)).input["text"]
        'hello'
        """
        return await self.call(api.get_job(job_id))

    async def jobs(self, *, limit: int = 50, **filters: str | None) -> AsyncIterator[JobView]:
        """Do what `Client.jobs` does.

        >>> job = await client.submit("echo", text="hello", tags={"project": "y"})
        >>> [found.id async for found in client.jobs(tag="project:y")] == [job.id]
        True
        """
        cursor: str | None = None
        while True:
            page = await self.call(api.list_jobs(limit, cursor, filters))
            for job in page.jobs:
                yield job
            cursor = page.next_cursor
            if cursor is None:
                return

    async def cancel(self, job_id: str) -> JobView:
        """Stop a waiting or running job. Raises Conflict if it has ended.

        >>> job = await client.submit("echo", seconds=60)
        >>> (await client.cancel(job.id)).status.value
        'cancel...'
        """
        return await self.call(api.post_job_action(job_id, "cancel"))

    async def retry(self, job_id: str) -> JobView:
        """Start a new round of a job that failed, was cancelled or expired.

        >>> job = await client.submit("echo", behave="exit", exit=65)
        >>> with contextlib.suppress(JobFailed):
        ...     await client.wait(job.id)
        >>> (await client.retry(job.id)).round
        2
        """
        return await self.call(api.post_job_action(job_id, "retry"))

    async def delete(self, job_id: str) -> None:
        """Remove a job that has ended, with its outputs and logs.

        >>> job = await client.submit("echo", text="hello", wait=True)
        >>> await client.delete(job.id)
        """
        await self.call(api.delete_path(api.job_path(job_id)))

    async def logs(self, job_id: str) -> str:
        """Return the job's log.

        >>> job = await client.submit("echo", text="hello", steps=1, wait=True)
        >>> print(await client.logs(job.id))
        first line of job code...
        step 1 of 1
        <BLANKLINE>
        """
        return await self.call(api.get_log(job_id))

    async def usage(self, since: str | None = None, until: str | None = None, owner: str | None = None) -> UsageReport:
        """Do what `Client.usage` does.

        >>> (await client.usage()).jobs > 0
        True
        """
        return await self.call(api.get_usage(since, until, owner))

    async def endpoints(self) -> list[dict[str, Any]]:
        """Do what `Client.endpoints` does.

        >>> "echo" in [endpoint["name"] for endpoint in await client.endpoints()]
        True
        """
        found: list[dict[str, Any]] = (await self.call(api.get_json("/v1/endpoints")))["endpoints"]
        return found

    async def pause_endpoint(self, name: str) -> dict[str, Any]:
        """Do what `Client.pause_endpoint` does.

        >>> (await client.pause_endpoint("echo"))["paused"] is not None
        True
        >>> (await client.resume_endpoint("echo"))["paused"]
        """
        paused: dict[str, Any] = await self.call(api.set_endpoint_pause(name, "pause"))
        return paused

    async def resume_endpoint(self, name: str) -> dict[str, Any]:
        """Do what `Client.resume_endpoint` does.

        >>> (await client.resume_endpoint("echo"))["paused"]
        """
        resumed: dict[str, Any] = await self.call(api.set_endpoint_pause(name, "resume"))
        return resumed

    async def deliveries(self, job_id: str) -> list[dict[str, Any]]:
        """Do what `Client.deliveries` does.

        >>> job = await client.submit("echo", text="hello", wait=True)
        >>> await client.deliveries(job.id)
        []
        """
        call = api.get_json(api.job_path(job_id, "deliveries"))
        found: list[dict[str, Any]] = (await self.call(call))["deliveries"]
        return found

    async def webhooks(self) -> list[dict[str, Any]]:
        """Do what `Client.webhooks` does.

        >>> await client.webhooks()
        []
        """
        found: list[dict[str, Any]] = (await self.call(api.get_json("/v1/webhooks")))["webhooks"]
        return found

    async def add_webhook(self, url: str, endpoints: Sequence[str] = (), states: Sequence[str] = ()) -> dict[str, Any]:
        """Do what `Client.add_webhook` does.

        >>> made = await client.add_webhook("https://app.example.com/hook", states=["expired"])
        >>> [webhook["states"] for webhook in await client.webhooks()]
        [['expired']]
        >>> await client.delete_webhook(made["id"])
        """
        added: dict[str, Any] = await self.call(api.add_webhook(url, endpoints, states))
        return added

    async def delete_webhook(self, webhook_id: str) -> None:
        """Do what `Client.delete_webhook` does.

        >>> made = await client.add_webhook("https://app.example.com/hook", endpoints=["preview"])
        >>> await client.delete_webhook(made["id"])
        """
        await self.call(api.delete_path(api.webhook_path(webhook_id)))

    async def secrets(self, *, owner: str | None = None, installation: bool = False) -> list[dict[str, Any]]:
        """Do what `Client.secrets` does.

        >>> await client.secrets()
        []
        """
        answer: dict[str, Any] = await self.call(api.list_secrets(owner=owner, installation=installation))
        found: list[dict[str, Any]] = answer["secrets"]
        return found

    async def set_secret(
        self, name: str, value: str, *, owner: str | None = None, installation: bool = False
    ) -> dict[str, Any]:
        """Do what `Client.set_secret` does.

        >>> facts = await client.set_secret("HF_TOKEN", "hf_of_an_example")
        >>> facts["name"]
        'HF_TOKEN'
        >>> await client.delete_secret("HF_TOKEN")
        """
        facts: dict[str, Any] = await self.call(api.set_secret(name, value, owner=owner, installation=installation))
        return facts

    async def delete_secret(self, name: str, *, owner: str | None = None, installation: bool = False) -> None:
        """Do what `Client.delete_secret` does.

        >>> facts = await client.set_secret("HF_TOKEN", "hf_of_an_example")
        >>> await client.delete_secret("HF_TOKEN")
        """
        await self.call(api.delete_secret(name, owner=owner, installation=installation))

    async def test_webhook(self, webhook_id: str) -> dict[str, Any]:
        """Do what `Client.test_webhook` does.

        >>> try:
        ...     await client.test_webhook("w-1")
        ... except NotFound as refused:
        ...     print(refused.problem.code)
        not_found
        """
        answer: dict[str, Any] = await self.call(api.test_webhook(webhook_id))
        return answer

    async def hosts(self) -> list[HostView]:
        """Return the hosts and what they are doing.

        >>> [host.state for host in await client.hosts() if host.id == "gpu-1"]
        ['online']
        """
        return (await self.call(api.list_hosts())).hosts

    async def power(self, host: str, want: Literal["on", "off", "auto"], until: str | None = None) -> HostView:
        """Do what `Client.power` does.

        >>> (await client.power("gpu-9", "auto")).hold
        """
        return await self.call(api.set_power(host, want, until))

    async def start_maintenance(self, host: str) -> HostView:
        """Do what `Client.start_maintenance` does.

        >>> (await client.start_maintenance("gpu-9")).maintenance is not None
        True
        >>> (await client.end_maintenance("gpu-9")).maintenance
        """
        return await self.call(api.start_maintenance(host))

    async def end_maintenance(self, host: str) -> HostView:
        """Do what `Client.end_maintenance` does.

        >>> (await client.end_maintenance("gpu-9")).maintenance
        """
        return await self.call(api.end_maintenance(host))
