"""Webhooks, pending inputs and inputs by URL, over HTTP."""

from typing import Any

import httpx2
import pytest

from edge.core.clock import utc_now
from edge.webhooks.owner_webhooks import LOG_SCAN_LIMIT
from schemas.job import Status
from schemas.webhook import DeliveryId, DeliveryLogRow, delivery_key
from tests.support.served_edge import ServedEdge
from tests.support.wait import wait_for
from tests.support.webhook_receiver import run_receiver, statuses_in_order


async def submit(edge: ServedEdge, **more: Any) -> dict[str, Any]:
    reply = await edge.ann.post("/v1/jobs", json={"endpoint": "echo", "input": {}, **more})
    assert reply.status_code == 202, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


async def deliveries(client: httpx2.AsyncClient, job_id: str, state: str) -> list[dict[str, Any]]:
    """Return the job's deliveries after all of them are in `state`."""
    found: list[dict[str, Any]] = []

    async def so() -> bool:
        found[:] = (await client.get(f"/v1/jobs/{job_id}/deliveries")).json()["deliveries"]
        return bool(found) and all(one["state"] == state for one in found)

    await wait_for(so)
    return found


async def test_deliveries_are_listed_and_replayed(edge: ServedEdge):
    async with run_receiver(statuses_in_order(410, 200)) as receiver:
        job = await submit(edge, webhook={"url": receiver.url})
        (one,) = await deliveries(edge.ann, job["id"], "disabled")
        assert (one["job_status"], one["url"], one["tries"][0]["status"]) == ("queued", receiver.url, 410)
        again = await edge.ann.post(f"/v1/deliveries/{one['id']}/replay")
        assert (again.status_code, again.json()["state"], again.json()["replays"]) == (202, "pending", 1)
        (one,) = await deliveries(edge.ann, job["id"], "delivered")
        assert [got.id for got in receiver.got] == [one["id"]] * 2
        assert (await edge.bob.get(f"/v1/jobs/{job['id']}/deliveries")).status_code == 404
        assert (await edge.bob.post(f"/v1/deliveries/{one['id']}/replay")).status_code == 404
    assert (await edge.ann.post("/v1/deliveries/nothing/replay")).status_code == 404


async def test_deliveries_of_all_jobs_are_listed_filtered_and_paged(edge: ServedEdge):
    async with run_receiver(statuses_in_order(410)) as gone, run_receiver() as receiver:
        first = await submit(edge, webhook={"url": gone.url})
        await deliveries(edge.ann, first["id"], "disabled")
        rest = [(await submit(edge, webhook={"url": receiver.url}))["id"] for _ in range(4)]
        for job_id in rest:
            await deliveries(edge.ann, job_id, "delivered")

        async def listed(**query: Any) -> list[str]:
            page = (await edge.ann.get("/v1/deliveries", params=query)).json()
            assert page["next_cursor"] is None
            return [one["job_id"] for one in page["deliveries"]]

        newest_first = [*reversed(rest), first["id"]]
        assert await listed() == newest_first
        assert await listed(state="disabled") == [first["id"]]
        assert await listed(state=["disabled", "delivered"]) == newest_first
        assert await listed(url=receiver.url.removeprefix("http://")) == newest_first[:-1]
        assert await listed(**{"from": "2999-01-01T00:00:00Z"}) == []
        assert await listed(to="2999-01-01T00:00:00Z") == newest_first
        paged, query = [], {"limit": 2}
        while query:
            page = (await edge.ann.get("/v1/deliveries", params=query)).json()
            paged.append([one["job_id"] for one in page["deliveries"]])
            query = page["next_cursor"] and {"limit": 2, "cursor": page["next_cursor"]}
        assert paged == [newest_first[:2], newest_first[2:4], newest_first[4:]]
    assert (await edge.bob.get("/v1/deliveries")).json() == {"deliveries": [], "next_cursor": None}
    assert (await edge.ann.get("/v1/deliveries", params={"state": "sent"})).status_code == 422


async def test_a_page_of_deliveries_reads_a_bounded_number_of_rows(edge: ServedEdge):
    """Rows that do not match cost reads, so a page ends early and names the place to continue."""
    world = edge.world
    for number in range(1, LOG_SCAN_LIMIT + 3):
        row = DeliveryLogRow(job_id="j", revision=number, status=Status.QUEUED, url="http://a", created_at=world.time())
        await world.bus.delivery_log.create(delivery_key("ann", DeliveryId("j", number)), row)
    page = (await edge.ann.get("/v1/deliveries", params={"url": "http://b"})).json()
    assert page["deliveries"] == []
    rest = (await edge.ann.get("/v1/deliveries", params={"cursor": page["next_cursor"]})).json()
    assert [one["revision"] for one in rest["deliveries"]] == [2, 1]
    assert rest["next_cursor"] is None


async def test_a_secret_is_read_and_rotated(edge: ServedEdge):
    first = (await edge.ann.get("/v1/webhooks/secret")).json()
    assert first["secret"].startswith("whsec_")
    assert first["previous_until"] is None
    second = (await edge.ann.post("/v1/webhooks/secret", json={})).json()
    assert second["secret"] != first["secret"]
    assert second["previous_until"] is not None
    assert (await edge.ann.get("/v1/webhooks/secret")).json() == second
    assert (await edge.bob.get("/v1/webhooks/secret")).json()["secret"] != second["secret"]
    bad = await edge.ann.post("/v1/webhooks/secret", json={"secret": "whsec_short"})
    assert (bad.status_code, bad.json()["errors"][0]["path"]) == (422, "$.secret")
    assert (await edge.anyone.get("/v1/webhooks/secret")).status_code == 401


async def test_a_job_that_lacks_input_says_what_and_why(edge: ServedEdge):
    digest = "sha256:" + "ab" * 32
    job = await submit(edge, input={"file": digest}, await_input=True)
    assert (job["status"], job["reason"], job["missing"]) == ("scheduled", "awaiting_input", [digest])
    refused = await edge.ann.post("/v1/jobs", json={"endpoint": "echo", "input": {"file": digest}})
    assert (refused.status_code, refused.json()["missing"]) == (422, [digest])


async def test_an_input_by_url_is_accepted_or_refused_by_what_it_says(edge: ServedEdge):
    async with run_receiver() as server:
        job = await submit(edge, input={"file": server.url})
        assert (job["status"], job["reason"], job["input"]["file"]) == ("scheduled", "fetching_input", server.url)
    for field, body in (
        ("$.input.file", {"input": {"file": "http://10.0.0.1/a"}}),
        ("$.webhook.url", {"input": {}, "webhook": {"url": "http://localhost.:0/"}}),
        ("$.webhook.url", {"input": {}, "webhook": {"url": "http://[::1]/"}}),
    ):
        refused = await edge.ann.post("/v1/jobs", json={"endpoint": "echo", **body})
        problem = refused.json()
        assert (refused.status_code, problem["code"], problem["errors"][0]["path"]) == (422, "url_refused", field)


async def add(edge: ServedEdge, **body: Any) -> dict[str, Any]:
    reply = await edge.ann.post("/v1/webhooks", json=body)
    assert reply.status_code == 201, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


async def test_owner_wide_webhooks_are_added_listed_tested_and_deleted(edge: ServedEdge):
    async with run_receiver(statuses_in_order(410, 204)) as receiver:
        webhook = await add(edge, url=receiver.url, endpoints=["echo"], states=["failed", "cancelled"])
        assert (webhook["endpoints"], webhook["states"]) == (["echo"], ["failed", "cancelled"])
        assert await add(edge, url=receiver.url, endpoints=["echo"], states=["cancelled", "failed"]) == webhook
        job = await submit(edge)
        await edge.ann.post(f"/v1/jobs/{job['id']}/cancel")
        (one,) = await deliveries(edge.ann, job["id"], "disabled")
        assert (one["webhook"], one["job_status"]) == (webhook["id"], "cancelled")
        assert (await edge.ann.get("/v1/webhooks")).json() == {"webhooks": [webhook | {"disabled": True}]}
        tested = (await edge.ann.post(f"/v1/webhooks/{webhook['id']}/test")).json()
        assert (tested["delivered"], tested["status"], tested["error"]) == (True, 204, None)
        assert (await edge.ann.get("/v1/webhooks")).json() == {"webhooks": [webhook]}
        sent = receiver.got[-1]
        secret = (await edge.ann.get("/v1/webhooks/secret")).json()["secret"]
        edge.world.time.now = utc_now()  # the verifier uses the clock
        assert (await edge.ann.post(f"/v1/webhooks/{webhook['id']}/test")).json()["delivered"]
        assert receiver.got[-1].verified(secret)["type"] == "webhook.test"
        assert sent.job == {"webhook": webhook["id"]}
    path = f"/v1/webhooks/{webhook['id']}"
    assert (await edge.bob.get("/v1/webhooks")).json() == {"webhooks": []}
    assert (await edge.bob.delete(path)).status_code == 404
    assert (await edge.ann.delete(path)).status_code == 204
    assert (await edge.ann.delete(path)).json()["detail"].endswith("GET /v1/webhooks lists them")
    assert (await edge.ann.post(f"{path}/test")).status_code == 404
    assert (await edge.ann.get("/v1/webhooks")).json() == {"webhooks": []}
    events = (await edge.admin.get("/v1/audit", params={"subject": webhook["id"]})).json()["events"]
    assert [event["action"] for event in events] == ["webhook_deleted", "webhook_added"]
    assert {event["owner"] for event in events} == {"ann"}
    assert {event["details"]["host"] for event in events} == {"files.test"}


async def test_a_receiver_that_does_not_answer_a_test_is_told(edge: ServedEdge):
    async with run_receiver(statuses_in_order(500)) as receiver:
        webhook = await add(edge, url=receiver.url)
        refused = (await edge.ann.post(f"/v1/webhooks/{webhook['id']}/test")).json()
        assert (refused["delivered"], refused["status"]) == (False, 500)
    silent = (await edge.ann.post(f"/v1/webhooks/{webhook['id']}/test")).json()
    assert (silent["delivered"], silent["status"]) == (False, None)
    assert silent["error"]


@pytest.mark.parametrize(
    ("body", "code", "path"),
    [
        ({}, "input_invalid", "$.url"),
        ({"url": "ftp://files.test/"}, "input_invalid", "$.url"),
        ({"url": "http://127.0.0.1/"}, "url_refused", "$.url"),
        ({"url": "https://files.test/" + "x" * 2048}, "input_invalid", "$.url"),
        ({"url": "https://files.test/", "states": ["running"]}, "input_invalid", "$.states[0]"),
        ({"url": "https://files.test/", "states": ["nonsense"]}, "input_invalid", "$.states[0]"),
        ({"url": "https://files.test/", "endpoints": ["a b"]}, "input_invalid", "$.endpoints[0]"),
        ({"url": "https://files.test/", "event": "x"}, "field_unknown", "$.event"),
    ],
)
async def test_a_webhook_that_cannot_be_is_refused(edge: ServedEdge, body: dict[str, Any], code: str, path: str):
    reply = await edge.ann.post("/v1/webhooks", json=body)
    assert (reply.status_code, reply.json()["code"]) == (400 if code == "field_unknown" else 422, code), reply.text
    assert [one["path"] for one in reply.json()["errors"]] == [path]
    assert (await edge.ann.get("/v1/webhooks")).json() == {"webhooks": []}


async def test_an_owner_that_is_being_deleted_adds_no_webhook(edge: ServedEdge):
    edge.world.quotas.mark_deleting("ann")
    reply = await edge.ann.post("/v1/webhooks", json={"url": "https://files.test/"})
    assert reply.json()["code"] == "owner_deleting"


async def test_all_deliveries_of_one_state_are_paged(edge: ServedEdge):
    async with run_receiver() as receiver:
        for number in range(3):
            await add(edge, url=f"{receiver.url}/{number}")
        job = await submit(edge, webhook={"url": receiver.url})
        await edge.ann.post(f"/v1/jobs/{job['id']}/cancel")

        async def all_there() -> bool:
            return len((await edge.ann.get("/v1/deliveries")).json()["deliveries"]) == 5

        await wait_for(all_there)
    whole = [one["id"] for one in (await edge.ann.get("/v1/deliveries")).json()["deliveries"]]
    paged, query = [], {"limit": 2}
    while query:
        page = (await edge.ann.get("/v1/deliveries", params=query)).json()
        paged += [one["id"] for one in page["deliveries"]]
        query = page["next_cursor"] and {"limit": 2, "cursor": page["next_cursor"]}
    assert paged == whole
    assert len(set(paged)) == 5
