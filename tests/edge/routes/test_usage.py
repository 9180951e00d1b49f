"""`GET /v1/usage`: which owners a key sees, and the time range."""

from datetime import timedelta

import pytest

from edge.usage import job_usage
from schemas import events as e
from schemas.job import AttemptUsage, Claim, JobKey, Output
from tests.support.edge_services import START
from tests.support.served_edge import ServedEdge

ECHO = {"endpoint": "echo", "input": {"text": "hello"}}


@pytest.fixture
async def used(edge: ServedEdge) -> ServedEdge:
    """Run one job of ann and two of bob, each for 10 s on one GPU."""
    for owner, name in (("ann", "a"), ("bob", "b"), ("bob", "c")):
        await getattr(edge, owner).put(f"/v1/jobs/{name}", json=ECHO)
        key = JobKey(owner, name)
        await edge.world.write_event(key, e.Started(Claim("gpu-1", "i1", 1, "GPU-1")))
        done = await edge.world.write_event(
            key, e.Succeeded(Output(), AttemptUsage(run_s=10.0, gpu_energy_j=500.0, cost=0.25))
        )
        await edge.world.bus.usage_log.add(job_usage(done, 7))
    return edge


async def test_an_owner_sees_its_own(used: ServedEdge):
    reply = await used.ann.get("/v1/usage")
    assert reply.status_code == 200
    found = reply.json()
    assert {name: found[name] for name in ("owner", "jobs", "gpu_s", "energy_j", "hours_on", "hours_saved")} == {
        "owner": "ann",
        "jobs": 1,
        "gpu_s": 10.0,
        "energy_j": 500.0,
        "hours_on": 0.0,
        "hours_saved": 0.0,
    }
    assert found["cost"] == {"amount": 0.25, "currency": "CNY"}
    [row] = found["by"]
    assert (row["endpoint"], row["jobs"], row["gpu_s"], row["cost"]["amount"]) == ("echo", 1, 10.0, 0.25)
    assert found["from"] < found["to"]


async def test_an_admin_sees_everybody_or_whom_it_names(used: ServedEdge):
    assert (await used.admin.get("/v1/usage")).json()["jobs"] == 3
    bob = (await used.admin.get("/v1/usage", params={"owner": "bob"})).json()
    assert (bob["owner"], bob["jobs"], bob["cost"]["amount"]) == ("bob", 2, 0.5)
    assert (await used.ann.get("/v1/usage", params={"owner": "bob"})).status_code == 403
    assert (await used.anyone.get("/v1/usage")).status_code == 401


@pytest.mark.parametrize("day", ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00%2B14:00", "9999-12-31T23:00:00-14:00"])
async def test_a_range_may_reach_to_the_ends_of_the_calendar(used: ServedEdge, day: str):
    assert (await used.ann.get(f"/v1/usage?from={day}")).status_code in {200, 422}
    assert (await used.ann.get(f"/v1/usage?to={day}")).status_code in {200, 422}
    assert (await used.ann.get("/v1/usage?from=0001-01-01T00:00:00Z")).json()["jobs"] == 1


async def test_a_range_narrows_it(used: ServedEdge):
    day = timedelta(days=1)
    before = {"from": (START - 2 * day).isoformat(), "to": (START - day).isoformat()}
    around = {"from": (START - day).isoformat(), "to": (START + day).isoformat()}
    assert (await used.ann.get("/v1/usage", params=before)).json()["jobs"] == 0
    assert (await used.ann.get("/v1/usage", params=around)).json()["jobs"] == 1
    refused = await used.ann.get("/v1/usage", params={"from": around["to"], "to": around["from"]})
    assert (refused.status_code, refused.json()["code"]) == (422, "input_invalid")
    assert (await used.ann.get("/v1/usage", params={"from": "yesterday"})).status_code in {400, 422}


@pytest.mark.parametrize("name", ["from", "to"])
async def test_a_bound_that_is_no_time_is_named_as_it_was_sent(used: ServedEdge, name: str):
    refused = (await used.ann.get("/v1/usage", params={name: "yesterday"})).json()
    assert refused["errors"][0]["path"] == f"$.{name}"
