"""`GET /v1/owners`: who is there, and what a deletion would delete."""

from bus.interface import WebhookDelivery
from schemas import events as e
from tests.support.served_edge import ServedEdge


async def test_owners_are_listed_with_what_they_have(edge: ServedEdge):
    world = edge.world
    await world.announce_capabilities()
    job = await world.submit("ann")
    await world.submit("ann")
    await edge.ann.post(f"/v1/jobs/{job.id}/cancel")
    await world.put("ann", b"twelve bytes")
    await world.put("bob", b"x")
    await world.wait_until_indexed()
    listed = {one["owner"]: one for one in (await edge.admin.get("/v1/owners")).json()["owners"]}
    ann = listed["ann"]
    assert (ann["jobs"], ann["unfinished"], ann["assets"], ann["keys"], ann["deletion"]) == (2, 1, 1, 1, None)
    assert (listed["bob"]["jobs"], listed["bob"]["assets"]) == (0, 1)
    assert "admin" in listed
    assert "gpu-1" not in listed, "a host is not an owner"

    asked = await edge.admin.delete("/v1/owners/bob")
    (bob,) = (one for one in (await edge.admin.get("/v1/owners")).json()["owners"] if one["owner"] == "bob")
    assert bob["deletion"] == asked.json()


async def test_what_a_deletion_deletes_is_counted_before_it(edge: ServedEdge):
    world = edge.world
    await world.announce_capabilities()
    hook = {"endpoint": "echo", "input": {}, "webhook": {"url": "https://files.test/h"}}
    accepted = await world.jobs.submit("ann", hook)
    entry = accepted.entry
    await world.webhooks.delivery_log.enqueue(
        WebhookDelivery(entry.revision, e.JobRecord(world.time(), e.Queued(), entry.record.job)), "https://files.test/h"
    )
    await world.put("ann", b"twelve bytes")
    await world.secrets.set("ann", "HF_TOKEN", "the secret of ann", "k")
    await world.wait_until_indexed()
    held = (await edge.admin.get("/v1/owners/ann")).json()
    assert held.pop("deliveries") >= 1
    assert held == {"owner": "ann", "jobs": 1, "unfinished": 1, "assets": 1, "bytes": 12, "keys": 1, "secrets": 1}
    nobody = (await edge.admin.get("/v1/owners/nobody")).json()
    assert nobody == {
        "owner": "nobody",
        "jobs": 0,
        "unfinished": 0,
        "assets": 0,
        "bytes": 0,
        "keys": 0,
        "deliveries": 0,
        "secrets": 0,
    }
    assert (await edge.ann.get("/v1/owners/ann")).status_code == 403
    assert (await edge.admin.get("/v1/owners/a b")).status_code == 422
