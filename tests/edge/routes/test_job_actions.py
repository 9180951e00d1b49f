"""`/v1/jobs/actions` and the filters of `/v1/jobs`: many jobs at once, exactly the ones that were named."""

from typing import NoReturn

import httpx2
import pytest
from msgspec import structs

from bus.interface import BrokerUnreachable, VersionedRecord
from schemas import events as e
from schemas.job import JobFailure, JobKey
from schemas.problems import ProblemError
from tests.support.served_edge import ServedEdge
from tests.support.wait import wait_for


async def submit(client: httpx2.AsyncClient, job_id: str, text: str = "hello", **fields: object) -> None:
    reply = await client.put(f"/v1/jobs/{job_id}", json={"endpoint": "echo", "input": {"text": text}, **fields})
    assert reply.status_code == 202, reply.text


async def fail(edge: ServedEdge, job_id: str, code: str = "oom", message: str = "no room left") -> None:
    """Let ann's job fail."""
    key = JobKey("ann", job_id)
    await edge.world.start((await edge.world.jobs.read(key)).record.job)
    await edge.world.write_event(key, e.Failed(JobFailure(code, message, "image", retryable=False)))


async def listed(client: httpx2.AsyncClient, **query: object) -> list[str]:
    reply = await client.get("/v1/jobs", params=query)
    assert reply.status_code == 200, reply.text
    return sorted(job["id"] for job in reply.json()["jobs"])


async def run(edge: ServedEdge, **body: object) -> dict[str, object]:
    """Start an action of ann, let the edge work on it, and return its report."""
    await edge.world.wait_until_indexed()
    reply = await edge.ann.post("/v1/jobs/actions", json=body)
    assert reply.status_code == 202, reply.text
    assert reply.json()["state"] == "running"
    await edge.services.job_actions.sweep()
    report = (await edge.ann.get(reply.headers["location"])).json()
    return {name: report[name] for name in ("state", "total", "done", "skipped", "failed", "failures")}


async def test_jobs_are_found_by_status_code_text_and_time(edge: ServedEdge):
    await submit(edge.ann, "first", tags={"project": "Winter_50%"})
    await submit(edge.ann, "second", text="A quick fox")
    edge.world.time.advance(seconds=60)
    later = edge.world.time().isoformat()
    await submit(edge.ann, "third")
    await fail(edge, "second")
    await submit(edge.bob, "foreign", text="A quick fox")
    await edge.world.wait_until_indexed()
    assert await listed(edge.ann, status=["failed", "queued"]) == ["first", "second", "third"]
    assert await listed(edge.ann, status="failed") == ["second"]
    assert await listed(edge.ann, code="oom") == ["second"]
    assert await listed(edge.ann, code="stalled") == []
    assert await listed(edge.ann, text="QUICK") == ["second"]
    assert await listed(edge.ann, text="room left") == ["second"]
    assert await listed(edge.ann, text="r_50%") == ["first"]
    assert await listed(edge.ann, text="r_5_%") == []
    assert await listed(edge.ann, text="thir") == ["third"]
    assert await listed(edge.ann, **{"from": later}) == ["third"]
    assert await listed(edge.ann, to=later) == ["first", "second"]


async def test_an_action_on_a_filter_reaches_exactly_what_it_matches(edge: ServedEdge):
    for number in range(120):
        await submit(edge.ann, f"wide-{number}", tags={"batch": "7"})
    await submit(edge.ann, "other")
    await submit(edge.bob, "foreign", tags={"batch": "7"})
    report = await run(edge, action="cancel", filter={"tags": {"batch": "7"}, "status": ["queued"]})
    assert report == {"state": "done", "total": 120, "done": 120, "skipped": 0, "failed": 0, "failures": []}
    assert (await edge.ann.get("/v1/jobs/other")).json()["status"] == "queued"
    assert (await edge.bob.get("/v1/jobs/foreign")).json()["status"] == "queued"


async def test_jobs_that_come_later_do_not_belong_to_the_action(edge: ServedEdge):
    await submit(edge.ann, "early")
    await edge.world.wait_until_indexed()
    reply = await edge.ann.post("/v1/jobs/actions", json={"action": "cancel", "filter": {}})
    edge.world.time.advance(seconds=1)
    await submit(edge.ann, "late")
    await edge.world.wait_until_indexed()
    await edge.services.job_actions.sweep()
    assert (await edge.ann.get(reply.headers["location"])).json()["done"] == 1
    assert (await edge.ann.get("/v1/jobs/late")).json()["status"] == "queued"


async def test_each_job_that_cannot_be_changed_is_reported_with_the_reason(edge: ServedEdge):
    await submit(edge.ann, "failed")
    await fail(edge, "failed")
    await submit(edge.ann, "waiting")
    report = await run(edge, action="retry", ids=["failed", "waiting", "nobody"])
    assert (report["done"], report["failed"]) == (1, 2)
    codes = {failure["id"]: failure["code"] for failure in report["failures"]}  # type: ignore[attr-defined]
    assert codes == {"waiting": "job_not_final", "nobody": "not_found"}
    assert (await edge.ann.get("/v1/jobs/failed")).json()["round"] == 2


async def test_deleting_twice_or_what_is_gone_counts_as_done(edge: ServedEdge):
    await submit(edge.ann, "gone")
    await edge.ann.post("/v1/jobs/gone/cancel")
    assert (await run(edge, action="delete", ids=["gone", "never"]))["done"] == 2
    assert (await edge.ann.get("/v1/jobs/gone")).status_code == 404


async def test_what_has_ended_needs_no_cancel(edge: ServedEdge):
    await submit(edge.ann, "ended")
    await fail(edge, "ended")
    report = await run(edge, action="cancel", ids=["ended"])
    assert (report["done"], report["skipped"], report["failed"]) == (0, 1, 0)


async def test_an_action_goes_on_where_an_edge_died(edge: ServedEdge):
    """The page that was being changed is changed again: it counts once, and no job starts a third round."""
    for number in range(3):
        await submit(edge.ann, f"again-{number}")
        await fail(edge, f"again-{number}")
    await edge.world.wait_until_indexed()
    reply = await edge.ann.post("/v1/jobs/actions", json={"action": "retry", "filter": {"status": ["failed"]}})
    service = edge.services.job_actions
    (row,) = (await edge.world.bus.job_actions.rows()).values()
    page = await service._next_page(row.value)
    await service._update(row.value, **page)
    await edge.ann.post("/v1/jobs/again-1/retry")  # as the edge that died had done
    await fail(edge, "again-1")
    await service.sweep()
    report = (await edge.ann.get(reply.headers["location"])).json()
    assert (report["state"], report["total"], report["done"]) == ("done", 3, 3)
    assert (await edge.ann.get("/v1/jobs/again-1")).json()["round"] == 2


async def test_an_owner_sees_only_its_own_actions(edge: ServedEdge):
    await submit(edge.ann, "mine")
    await run(edge, action="cancel", ids=["mine"])
    (action,) = (await edge.ann.get("/v1/jobs/actions")).json()["actions"]
    assert (await edge.bob.get("/v1/jobs/actions")).json() == {"actions": []}
    assert (await edge.bob.get(f"/v1/jobs/actions/{action['id']}")).status_code == 404


async def test_deleting_an_owner_takes_its_actions_along(edge: ServedEdge):
    await submit(edge.ann, "mine")
    await run(edge, action="cancel", ids=["mine"])
    await edge.admin.delete("/v1/owners/ann")

    async def gone() -> bool:
        await edge.services.owner_deletions.sweep()
        return not await edge.world.bus.job_actions.keys("ann.>")

    await wait_for(gone)


@pytest.mark.parametrize(
    "body",
    [
        {"action": "cancel"},
        {"action": "cancel", "ids": ["a"], "filter": {}},
        {"action": "burn", "ids": ["a"]},
        {"action": "cancel", "ids": ["a"] * 1001},
        {"action": "cancel", "filter": {"state": "failed"}},
        {"action": "cancel", "ids": ["a.b"]},
    ],
)
async def test_a_request_that_names_no_jobs_clearly_is_refused(edge: ServedEdge, body: dict[str, object]):
    reply = await edge.ann.post("/v1/jobs/actions", json=body)
    assert reply.status_code in {400, 422}, reply.text
    assert (await edge.ann.get("/v1/jobs/actions")).json() == {"actions": []}


async def test_an_edge_leaves_a_filter_that_it_does_not_know_to_a_newer_one(edge: ServedEdge):
    await submit(edge.ann, "mine")
    await edge.world.wait_until_indexed()
    reply = await edge.ann.post("/v1/jobs/actions", json={"action": "cancel", "filter": {"text": "hello"}})
    table = edge.world.bus.job_actions
    ((name, row),) = (await table.rows()).items()
    assert row.value.conditions == ("text",)
    await table.put(name, structs.replace(row.value, conditions=("text", "host")))
    await edge.services.job_actions.sweep()
    assert (await edge.ann.get(reply.headers["location"])).json()["state"] == "running"
    assert (await edge.ann.get("/v1/jobs/mine")).json()["status"] == "queued"


async def test_an_action_goes_on_after_the_broker_was_away(edge: ServedEdge):
    await submit(edge.ann, "mine")
    await edge.world.wait_until_indexed()
    reply = await edge.ann.post("/v1/jobs/actions", json={"action": "cancel", "ids": ["mine"]})
    edge.world.broker.stop()
    with pytest.raises(BrokerUnreachable):
        await edge.services.job_actions.sweep()
    edge.world.broker.start()
    await edge.services.job_actions.sweep()
    report = (await edge.ann.get(reply.headers["location"])).json()
    assert (report["state"], report["done"]) == ("done", 1)


async def test_an_action_waits_while_retries_are_limited_and_says_so(edge: ServedEdge, monkeypatch: pytest.MonkeyPatch):
    await submit(edge.ann, "failed")
    await fail(edge, "failed")
    await edge.world.wait_until_indexed()
    reply = await edge.ann.post("/v1/jobs/actions", json={"action": "retry", "ids": ["failed"]})
    retry = edge.services.jobs.retry

    async def refuse(_: JobKey) -> NoReturn:
        raise ProblemError("rate_limited", "at most 1 submits a minute: try again in 9 s", retry_after_s=9)

    monkeypatch.setattr(edge.services.jobs, "retry", refuse)
    await edge.services.job_actions.sweep()
    waiting = (await edge.ann.get(reply.headers["location"])).json()
    assert (waiting["state"], waiting["done"], waiting["failed"]) == ("running", 0, 0)
    assert "try again in 9 s" in waiting["waits_for"]
    monkeypatch.setattr(edge.services.jobs, "retry", retry)
    await edge.services.job_actions.sweep()
    done = (await edge.ann.get(reply.headers["location"])).json()
    assert (done["state"], done["done"], done["waits_for"]) == ("done", 1, None)


async def test_a_cancel_that_comes_after_the_end_changes_nothing(edge: ServedEdge, monkeypatch: pytest.MonkeyPatch):
    """The job ends between the page of the action and its cancel."""
    await submit(edge.ann, "racing")
    await edge.world.wait_until_indexed()
    reply = await edge.ann.post("/v1/jobs/actions", json={"action": "cancel", "filter": {"status": ["queued"]}})
    cancel = edge.services.jobs.cancel_unfinished

    async def end_first(key: JobKey) -> VersionedRecord:
        await fail(edge, key.id)
        return await cancel(key)

    monkeypatch.setattr(edge.services.jobs, "cancel_unfinished", end_first)
    await edge.services.job_actions.sweep()
    report = (await edge.ann.get(reply.headers["location"])).json()
    assert (report["state"], report["done"], report["skipped"], report["failed"]) == ("done", 0, 1, 0)
    assert (await edge.ann.get("/v1/jobs/racing")).json()["status"] == "failed"
