"""How a test works with jobs and looks at them behind the clients' backs: every event, and whether anything is left."""

from collections import Counter
from collections.abc import Awaitable
from typing import Any

import anyio

from bus.port import Entry
from lamplighter import AsyncClient
from lamplighter.errors import JobFailed, Rejected
from schemas.events import Event
from schemas.job import JobKey
from schemas.view import JobView
from schemas.words import FINAL
from tests.e2e.conftest import Lit
from tests.e2e.installation import until

PATIENCE_S = 60.0
UNHURRIED = {"execution_timeout_s": 600, "stall_timeout_s": 600}  # for jobs that the test itself ends


async def submit(lit: Lit, policy: dict[str, Any] | None = None, endpoint: str = "echo", **given: Any) -> JobView:
    """A job of ann's, under `policy`."""
    return await lit.ann.submit(endpoint, options={"options": {"policy": policy or {}}}, **given)


async def ended(client: AsyncClient, job_id: str) -> JobView:
    """The job once it has ended, however it did."""
    with anyio.fail_after(PATIENCE_S):
        try:
            return await client.wait(job_id)
        except JobFailed as failed:
            return failed.job


async def working(lit: Lit, job_id: str) -> None:
    """Wait until its container is there and has said something."""
    with anyio.fail_after(PATIENCE_S):
        async for event in lit.ann.follow(job_id):
            if event.kind == "progress":
                return
    raise AssertionError(f"{job_id} ended without a word")


async def waits_for(lit: Lit, job_id: str, *reasons: str) -> None:
    """Wait until the job gives one of `reasons` for its waiting: what the edge knows of hosts follows their records."""

    async def says_so() -> bool:
        return (await lit.ann.job(job_id)).reason in reasons

    await until(says_so)


async def unless_refused(call: Awaitable[object], *codes: str) -> None:
    """Let it be done, or refused for one of `codes`."""
    try:
        await call
    except Rejected as rejected:
        if rejected.problem.code not in codes:
            raise


async def history(lit: Lit, job_id: str, owner: str = "ann") -> list[Entry]:
    """The job's last 64 events."""
    return await lit.bus.records.history(JobKey(owner, job_id))


def events(entries: list[Entry], kind: type[Event]) -> list[Any]:
    """The events of one kind."""
    return [entry.recorded.event for entry in entries if isinstance(entry.recorded.event, kind)]


def assert_one_end_a_round(entries: list[Entry]) -> None:
    """Every round ended once, and nothing happened in it afterwards."""
    rounds = [entry.recorded.job.round for entry in entries]
    assert rounds == sorted(rounds)
    ends = Counter(entry.recorded.job.round for entry in entries if entry.recorded.job.status in FINAL)
    assert ends == Counter(set(rounds)), [type(entry.recorded.event).__name__ for entry in entries]
    lasts = {entry.recorded.job.round: entry.recorded.job.status for entry in entries}
    assert set(lasts.values()) <= FINAL


async def left(lit: Lit, hosts: tuple[str, ...], *, messages: bool = True) -> list[str]:
    """Messages in JOBS, containers in any state, folders of attempts."""
    found = [str(pointer) for pointer in await lit.bus.queue.waiting()] if messages else []
    for host in hosts:
        found += [str(one) for one in await lit.installation.containers(host)]
        found += [str(folder) for folder in (lit.installation.folder / host / "jobs").iterdir()]
    return found


async def nothing_left(lit: Lit, *hosts: str, within_s: float = 20) -> None:
    """Wait until nothing is left of any job."""
    places = hosts or ("gpu-1",)

    async def nothing() -> bool:
        return not await left(lit, places)

    try:
        await until(nothing, within_s)
    except TimeoutError:
        raise AssertionError(f"still there after {within_s:.0f} s: {await left(lit, places)}") from None
