"""How tests submit jobs and check them without the clients' help: every event, and whether anything is left."""

from collections import Counter
from collections.abc import Awaitable
from typing import Any

import anyio

from bus.interface import VersionedRecord
from lamplighter import AsyncClient
from lamplighter.api import JobFailed, Rejected
from schemas.events import JobEvent
from schemas.job import FINAL_STATUSES, JobKey
from schemas.job_view import JobView
from tests.support.installation import RunningInstallation
from tests.support.wait import wait_for

JOB_TIMEOUT_S = 60.0
LONG_TIMEOUTS = {"execution_timeout_s": 600, "stall_timeout_s": 600}  # for jobs that the test itself ends


async def submit_job(
    running: RunningInstallation, policy: dict[str, Any] | None = None, endpoint: str = "echo", **given: Any
) -> JobView:
    """Submit a job of ann under `policy`."""
    return await running.ann.submit(endpoint, options={"options": {"policy": policy or {}}}, **given)


async def wait_until_ended(client: AsyncClient, job_id: str) -> JobView:
    """Return the job once it has ended, with success or not."""
    with anyio.fail_after(JOB_TIMEOUT_S):
        try:
            return await client.wait(job_id)
        except JobFailed as failed:
            return failed.job


async def wait_until_running(running: RunningInstallation, job_id: str) -> None:
    """Wait until its container has reported progress."""
    with anyio.fail_after(JOB_TIMEOUT_S):
        async for event in running.ann.follow(job_id):
            if event.kind == "progress":
                return
    raise AssertionError(f"{job_id} ended without a word")


async def wait_for_reason(running: RunningInstallation, job_id: str, *reasons: str) -> None:
    """Wait until the job waits for one of `reasons`; the edge learns of hosts with a delay."""

    async def has_reason() -> bool:
        return (await running.ann.job(job_id)).reason in reasons

    await wait_for(has_reason)


async def allow_problems(call: Awaitable[object], *codes: str) -> None:
    """Await `call`, which may be rejected with one of `codes`."""
    try:
        await call
    except Rejected as rejected:
        if rejected.problem.code not in codes:
            raise


async def read_history(running: RunningInstallation, job_id: str, owner: str = "ann") -> list[VersionedRecord]:
    """Return the job's last 64 events."""
    return await running.bus.job_store.history(JobKey(owner, job_id))


def events_of(entries: list[VersionedRecord], kind: type[JobEvent]) -> list[Any]:
    """Return the events of one kind."""
    return [entry.record.event for entry in entries if isinstance(entry.record.event, kind)]


def assert_one_end_a_round(entries: list[VersionedRecord]) -> None:
    """Assert that every round ended once, and that nothing happened in it afterwards."""
    rounds = [entry.record.job.round for entry in entries]
    assert rounds == sorted(rounds)
    ends = Counter(entry.record.job.round for entry in entries if entry.record.job.status in FINAL_STATUSES)
    assert ends == Counter(set(rounds)), [type(entry.record.event).__name__ for entry in entries]
    lasts = {entry.record.job.round: entry.record.job.status for entry in entries}
    assert set(lasts.values()) <= FINAL_STATUSES


async def find_leftovers(running: RunningInstallation, hosts: tuple[str, ...], *, messages: bool = True) -> list[str]:
    """Return messages in JOBS, containers in any state, and folders of attempts."""
    found = [str(pointer) for pointer in await running.bus.job_queue.list_pending()] if messages else []
    for host in hosts:
        found += [str(one) for one in await running.installation.containers(host)]
        found += [str(folder) for folder in (running.installation.folder / host / "jobs").iterdir()]
    return found


async def wait_until_clean(running: RunningInstallation, *hosts: str, timeout_s: float = 20) -> None:
    """Wait until nothing is left of any job."""
    checked_hosts = hosts or ("gpu-1",)

    async def is_clean() -> bool:
        return not await find_leftovers(running, checked_hosts)

    try:
        await wait_for(is_clean, timeout_s=timeout_s)
    except TimeoutError:
        raise AssertionError(f"left after {timeout_s:g} s: {await find_leftovers(running, checked_hosts)}") from None
