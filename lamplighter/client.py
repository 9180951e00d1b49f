"""The clients of an edge: `Client` blocks, `AsyncClient` (lamplighter.async_client) awaits. Their methods are the same.

>>> from lamplighter import Client
>>> with Client(url, key) as client:
...     job = client.submit("echo", text="hello", wait=True)
>>> job.output.data
{'text': 'hello'}

tests/e2e/test_examples.py runs the examples against a real edge.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lamplighter import api
from lamplighter.api import Batch, Busy, Unreachable, submit_batch, submit_options
from lamplighter.files import find_local_files, has_text_path, select_asset_inputs
from lamplighter.follow import Event, FollowState, ReconnectBudget, long_poll_s, require_success, wait_end
from lamplighter.transport import EdgeTransport, map_http_errors
from schemas.asset import DIGEST_SCHEME
from schemas.host import HostView
from schemas.job import FINAL_STATUSES
from schemas.job_view import JobView, UsageReport


class Client(EdgeTransport):
    """A connection to one edge. Use it in a `with`, or call `close`. Every call may raise Rejected or Unreachable."""

    def submit(  # noqa: PLR0913 - what a job may have
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
        """Submit a job, and upload its files first: paths, and names of local files in fields for files.

        With `await_input` the job is accepted first and the files are uploaded afterwards, while a host that is off
        starts. `webhook` is the URL that the states of the job are delivered to. `tags` are for `jobs(tag=…)`.
        `options` are those of `api.submit_job`: job_id, idempotency_key, priority, and `options` for further fields of
        the body. With `wait`, return when the job has ended, and raise JobFailed unless it succeeded, or TimeoutError
        after `timeout_s`. The job then continues.

        >>> job = client.submit("echo", text="hello", file="hello.txt", wait=True)
        >>> job.output.data, job.output.files[0].bytes
        ({'text': 'hello'}, 6)
        """
        files = self._resolve_files(endpoint, inputs)
        if await_input:
            named = {name: DIGEST_SCHEME + self._digest_cache.digest(path) for name, path in files.items()}
        else:
            named = {name: self.upload(path).digest for name, path in files.items()}
        more = submit_options(options, await_input, webhook, tags)
        job = self.call(api.submit_job(endpoint, inputs | named, **more))
        for path in files.values() if await_input else ():
            self.upload(path)
        return self.wait(job.id, timeout_s) if wait else job

    def batch(self, jobs: Sequence[Mapping[str, Any]], idempotency_key: str | None = None) -> Batch:
        """Submit up to 1000 jobs, each a body of `POST /v1/jobs`. An invalid job does not reject the others.

        >>> made = client.batch([{"endpoint": "echo", "input": {}}, {"endpoint": "nowhere", "input": {}}])
        >>> len(made.accepted), made.rejected[0].problem.code
        (1, 'endpoint_unknown')
        """
        return self.call(submit_batch(jobs, idempotency_key))

    def _resolve_files(self, endpoint: str, inputs: dict[str, Any]) -> dict[str, Path]:
        files = find_local_files(inputs)
        if not has_text_path(inputs, files):
            return files
        return select_asset_inputs(inputs, files, self.call(api.get_endpoint(endpoint))["input"])

    def wait(self, job_id: str, timeout_s: float | None = None) -> JobView:
        """Return the job once it has ended. Raises JobFailed unless it succeeded, TimeoutError after `timeout_s`.

        Waits through a restart of the edge. A timeout does not stop the job.

        >>> job = client.submit("echo", behave="exit", exit=65)
        >>> try:
        ...     client.wait(job.id)
        ... except JobFailed as failed:
        ...     print(failed.job.error.code, failed.job.error.blame)
        bad_input client
        >>> job = client.submit("echo", seconds=60)
        >>> try:
        ...     client.wait(job.id, timeout_s=0.1)
        ... except TimeoutError as late:
        ...     print(str(late).partition(", ")[2])
        and continues: wait for it again, or cancel it
        >>> client.cancel(job.id).id == job.id
        True
        """
        ends_at, budget = wait_end(timeout_s), ReconnectBudget()
        job = self.call(api.get_job(job_id))
        while job.status not in FINAL_STATUSES:
            budget.reset()
            job = self._long_poll(job, budget, ends_at)
        return require_success(job)

    def _long_poll(self, job: JobView, budget: ReconnectBudget, ends_at: float | None) -> JobView:
        """Return the job when it has ended, or after LONG_POLL_S, or at `ends_at`."""
        while True:
            try:
                return self.call(api.get_job(job.id, long_poll_s(ends_at, job)))
            except (Busy, Unreachable) as error:
                budget.spend(error)
                time.sleep(budget.delay_s)

    def follow(self, job_id: str, after: str | None = None) -> Iterator[Event]:
        """Yield the events of a job until its end. After a lost connection, resume after the last event.

        Raises Unreachable for an edge that never answered, or has not answered for five minutes. To continue in another
        process, give the `id` of the last event as `after`.

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
        state = FollowState(after)
        while not state.is_final:
            try:
                yield from self._stream_events(job_id, state)
                if not state.has_events and self.job(job_id).status in FINAL_STATUSES:
                    return  # `after` was the last event
            except (Busy, Unreachable) as error:
                state.budget.spend(error)
            if not state.is_final:
                time.sleep(state.budget.delay_s)

    def _stream_events(self, job_id: str, state: FollowState) -> Iterator[Event]:
        path = api.job_path(job_id, "events")
        with map_http_errors(self.url), self._http.stream("GET", path, headers=state.headers) as reply:
            if reply.status_code >= 400:
                raise api.error_from_response(reply.status_code, reply.read())
            state.start_connection()
            for text in reply.iter_text():
                yield from state.read(text)

    def job(self, job_id: str) -> JobView:
        """Return the job. Raises NotFound.

        >>> job = client.submit("echo", text="hello")
        >>> client.job(job.id).input["text"]
        'hello'
        """
        return self.call(api.get_job(job_id))

    def jobs(self, *, limit: int = 50, **filters: str | None) -> Iterator[JobView]:
        """Yield jobs, newest first, page after page. `filters` are status, endpoint, priority and tag (`name:value`).

        >>> job = client.submit("echo", text="hello", tags={"project": "x"})
        >>> [found.id for found in client.jobs(tag="project:x")] == [job.id]
        True
        """
        cursor: str | None = None
        while True:
            page = self.call(api.list_jobs(limit, cursor, filters))
            yield from page.jobs
            cursor = page.next_cursor
            if cursor is None:
                return

    def cancel(self, job_id: str) -> JobView:
        """Stop a waiting or running job. Raises Conflict if it has ended.

        >>> job = client.submit("echo", seconds=60)
        >>> client.cancel(job.id).status.value
        'cancel...'
        """
        return self.call(api.post_job_action(job_id, "cancel"))

    def retry(self, job_id: str) -> JobView:
        """Start a new round of a job that failed, was cancelled or expired. It keeps its id and inputs.

        >>> job = client.submit("echo", behave="exit", exit=65)
        >>> with contextlib.suppress(JobFailed):
        ...     client.wait(job.id)
        >>> client.retry(job.id).round
        2
        """
        return self.call(api.post_job_action(job_id, "retry"))

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
        self.call(api.delete_path(api.job_path(job_id)))

    def logs(self, job_id: str) -> str:
        """Return the job's log.

        >>> job = client.submit("echo", text="hello", steps=1, wait=True)
        >>> print(client.logs(job.id))
        first line of job code...
        step 1 of 1
        <BLANKLINE>
        """
        return self.call(api.get_log(job_id))

    def usage(self, since: str | None = None, until: str | None = None, owner: str | None = None) -> UsageReport:
        """Return jobs, GPU seconds, energy and cost between two times (RFC 3339). The default is the last 30 days.

        The report is about the owner of the key; with an admin key it is about all owners, or about `owner`.

        >>> report = client.usage(since="2026-11-01T00:00:00Z")
        >>> report.jobs > 0, report.cost.currency
        (True, '...')
        """
        return self.call(api.get_usage(since, until, owner))

    def endpoints(self) -> list[dict[str, Any]]:
        """Return the endpoints, each with its name and the JSON Schema of its `input`.

        >>> "echo" in [endpoint["name"] for endpoint in client.endpoints()]
        True
        """
        found: list[dict[str, Any]] = self.call(api.get_json("/v1/endpoints"))["endpoints"]
        return found

    def pause_endpoint(self, name: str) -> dict[str, Any]:
        """Keep hosts from starting jobs of the endpoint; new jobs wait. Needs the scope `power`.

        >>> client.pause_endpoint("echo")["paused"] is not None
        True
        >>> client.resume_endpoint("echo")["paused"]
        """
        paused: dict[str, Any] = self.call(api.set_endpoint_pause(name, "pause"))
        return paused

    def resume_endpoint(self, name: str) -> dict[str, Any]:
        """End the pause of an endpoint. Needs the scope `power`.

        >>> client.resume_endpoint("echo")["paused"]
        """
        resumed: dict[str, Any] = self.call(api.set_endpoint_pause(name, "resume"))
        return resumed

    def deliveries(self, job_id: str) -> list[dict[str, Any]]:
        """Return the webhook deliveries of a job, sent and pending.

        >>> job = client.submit("echo", text="hello", wait=True)
        >>> client.deliveries(job.id)
        []
        """
        found: list[dict[str, Any]] = self.call(api.get_json(api.job_path(job_id, "deliveries")))["deliveries"]
        return found

    def webhooks(self) -> list[dict[str, Any]]:
        """Return the webhooks for all jobs of the key's owner.

        >>> client.webhooks()
        []
        """
        found: list[dict[str, Any]] = self.call(api.get_json("/v1/webhooks"))["webhooks"]
        return found

    def add_webhook(self, url: str, endpoints: Sequence[str] = (), states: Sequence[str] = ()) -> dict[str, Any]:
        """Let the edge call `url` with final states of all jobs; empty `endpoints` and `states`: all.

        >>> made = client.add_webhook("https://app.example.com/hook", states=["expired"])
        >>> [webhook["states"] for webhook in client.webhooks()]
        [['expired']]
        >>> client.delete_webhook(made["id"])
        """
        added: dict[str, Any] = self.call(api.add_webhook(url, endpoints, states))
        return added

    def delete_webhook(self, webhook_id: str) -> None:
        """Delete a webhook for all jobs. Its waiting deliveries are not sent.

        >>> made = client.add_webhook("https://app.example.com/hook", endpoints=["preview"])
        >>> client.delete_webhook(made["id"])
        """
        self.call(api.delete_path(api.webhook_path(webhook_id)))

    def secrets(self, *, owner: str | None = None, installation: bool = False) -> list[dict[str, Any]]:
        """Return the secrets of the key's owner, of `owner` (needs admin) or of the installation, without values.

        >>> client.secrets()
        []
        """
        answer: dict[str, Any] = self.call(api.list_secrets(owner=owner, installation=installation))
        found: list[dict[str, Any]] = answer["secrets"]
        return found

    def set_secret(
        self, name: str, value: str, *, owner: str | None = None, installation: bool = False
    ) -> dict[str, Any]:
        """Set a secret that programs of jobs can read. `owner` and `installation`: as in `secrets`.

        >>> facts = client.set_secret("HF_TOKEN", "hf_of_an_example")
        >>> facts["name"]
        'HF_TOKEN'
        >>> client.delete_secret("HF_TOKEN")
        """
        facts: dict[str, Any] = self.call(api.set_secret(name, value, owner=owner, installation=installation))
        return facts

    def delete_secret(self, name: str, *, owner: str | None = None, installation: bool = False) -> None:
        """Delete a secret. A waiting job that needs it fails when it starts.

        >>> facts = client.set_secret("HF_TOKEN", "hf_of_an_example")
        >>> client.delete_secret("HF_TOKEN")
        """
        self.call(api.delete_secret(name, owner=owner, installation=installation))

    def test_webhook(self, webhook_id: str) -> dict[str, Any]:
        """Let the edge send one test message, and return the receiver's answer.

        >>> try:
        ...     client.test_webhook("w-1")
        ... except NotFound as refused:
        ...     print(refused.problem.code)
        not_found
        """
        answer: dict[str, Any] = self.call(api.test_webhook(webhook_id))
        return answer

    def hosts(self) -> list[HostView]:
        """Return the hosts and what they are doing.

        >>> [host.state for host in client.hosts() if host.id == "gpu-1"]
        ['online']
        """
        return self.call(api.list_hosts()).hosts

    def power(self, host: str, want: Literal["on", "off", "auto"], until: str | None = None) -> HostView:
        """Keep a declared host on or off until a time, or until `auto` ends the override.

        Off drains the host first and never interrupts a job. Needs the scope `power`.

        >>> client.power("gpu-9", "off").hold["want"]
        'off'
        >>> client.power("gpu-9", "auto").hold
        """
        return self.call(api.set_power(host, want, until))

    def start_maintenance(self, host: str) -> HostView:
        """Keep the host from starting jobs, and power rules from switching it. Needs the scope `power`.

        >>> client.start_maintenance("gpu-9").maintenance is not None
        True
        >>> client.end_maintenance("gpu-9").maintenance
        """
        return self.call(api.start_maintenance(host))

    def end_maintenance(self, host: str) -> HostView:
        """End the maintenance of a host. Needs the scope `power`.

        >>> client.end_maintenance("gpu-9").maintenance
        """
        return self.call(api.end_maintenance(host))
