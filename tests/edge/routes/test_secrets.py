"""`/v1/secrets`: who may set, see and delete what; that no answer has a value; and the host that runs a job."""

import pytest
from msgspec.structs import replace

from runner.assets.client import asset_client
from runner.assets.port import SecretMissing, SecretsUnavailable
from schemas.credentials import Scope
from schemas.endpoint import Endpoint
from tests.support.served_edge import ServedEdge

TTS = Endpoint(name="tts", image="tts", secrets=("HF_TOKEN",))
VALUE = "hf_the-value-of-ann"


async def test_a_secret_is_set_listed_and_deleted_and_never_answered(edge: ServedEdge):
    path = "/v1/secrets/HF_TOKEN"
    made = await edge.ann.put(path, json={"value": VALUE})
    listed = await edge.ann.get("/v1/secrets")
    assert (made.status_code, made.json()["name"], made.json()["owner"]) == (200, "HF_TOKEN", "ann")
    assert listed.json() == {"secrets": [made.json()]}
    assert (await edge.bob.get("/v1/secrets")).json() == {"secrets": []}
    assert (await edge.bob.delete(path)).status_code == 404
    assert (await edge.admin.get("/v1/secrets", params={"owner": "ann"})).json() == listed.json()
    assert (await edge.ann.get(path)).status_code == 405
    assert (await edge.ann.delete(path)).status_code == 204
    events = (await edge.admin.get("/v1/audit", params={"subject": "HF_TOKEN"})).json()["events"]
    assert [(event["action"], event["owner"]) for event in events] == [
        ("secret_deleted", "ann"),
        ("secret_set", "ann"),
    ]
    answers = (made.text, listed.text, str(events))
    assert not [text for text in answers if VALUE in text]


async def test_only_an_admin_touches_those_of_the_installation(edge: ServedEdge):
    path, query = "/v1/secrets/HF_TOKEN", {"installation": "true"}
    assert (await edge.admin.put(path, json={"value": VALUE}, params=query)).json()["owner"] is None
    assert (await edge.ann.get("/v1/secrets", params=query)).status_code == 403
    assert (await edge.ann.put(path, json={"value": VALUE}, params=query)).status_code == 403
    assert (await edge.ann.delete(path, params=query)).status_code == 403
    assert (await edge.ann.get("/v1/secrets", params={"owner": "bob"})).status_code == 403
    assert (await edge.runner.get("/v1/secrets")).status_code == 403
    assert (await edge.admin.delete(path, params=query)).status_code == 204


async def test_an_admin_replaces_the_key_and_the_audit_log_tells_it(edge: ServedEdge):
    await edge.ann.put("/v1/secrets/HF_TOKEN", json={"value": VALUE})
    for client in (edge.ann, edge.runner):
        assert (await client.post("/v1/secret-key/rotate")).status_code == 403
    done = (await edge.admin.post("/v1/secret-key/rotate")).json()
    assert (len(done["old_key_ids"]), done["sealed"]) == (1, 1)
    early = await edge.admin.post("/v1/secret-key/rotate?finish=true", headers={"Accept-Language": "zh"})
    assert (early.status_code, early.json()["code"]) == (503, "unavailable")
    assert int(early.headers["Retry-After"]) > 0
    assert "旧密钥" in early.json()["detail"]
    events = (await edge.admin.get("/v1/audit", params={"action": "secret_key_rotated"})).json()["events"]
    assert [(event["subject"], event["details"]) for event in events] == [
        (done["key_id"], {"step": "started", "sealed": "1"})
    ]


async def test_bad_values_and_names_are_refused(edge: ServedEdge):
    for body in ({"value": "short"}, {"value": 5}, {}, {"value": VALUE, "more": 1}):
        reply = await edge.ann.put("/v1/secrets/HF_TOKEN", json=body)
        assert reply.status_code in {400, 422}, reply.text
        assert VALUE not in reply.text
    assert (await edge.ann.put("/v1/secrets/a.b", json={"value": VALUE})).status_code == 422
    assert (await edge.ann.get("/v1/secrets")).json() == {"secrets": []}


async def test_a_submit_says_which_secret_is_missing(edge: ServedEdge):
    await edge.world.announce_capabilities(endpoints=(TTS,))
    body = {"endpoint": "tts", "input": {}}
    refused = await edge.ann.post("/v1/jobs", json=body, headers={"Accept-Language": "zh"})
    assert (refused.status_code, refused.json()["code"]) == (422, "secret_missing")
    assert "lamplighter secrets set NAME" in refused.json()["detail"]
    assert "HF_TOKEN" in refused.json()["detail"]
    assert "机密信息" in refused.json()["detail"]
    await edge.ann.put("/v1/secrets/HF_TOKEN", json={"value": VALUE})
    assert (await edge.ann.post("/v1/jobs", json=body)).status_code == 202


async def test_only_the_host_that_runs_a_job_reads_its_secrets(edge: ServedEdge):
    world = edge.world
    await world.announce_capabilities(endpoints=(TTS,))
    await edge.ann.put("/v1/secrets/HF_TOKEN", json={"value": VALUE})
    await edge.ann.put("/v1/secrets/OTHER", json={"value": "another value"})
    job = (await world.jobs.submit("ann", {"endpoint": "tts", "input": {}})).entry.record.job
    path, query = f"/v1/jobs/{job.id}/secrets", {"owner": "ann"}
    keys = {host: (await edge.keys.create(f"host-{host}", [Scope.RUNNER], host=host)).text for host in ("gpu-1", "b")}

    async def ask(host: str) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {keys[host]}"}
        reply = await edge.anyone.post(path, params=query, headers=headers)
        return reply.status_code, reply.text

    assert (await ask("gpu-1"))[0] == 403, "it is only queued"
    running = await world.start(job)
    assert await ask("gpu-1") == (200, f'{{"secrets":{{"HF_TOKEN":"{VALUE}"}}}}')
    assert (await ask("b"))[0] == 403
    for client in (edge.ann, edge.admin, edge.bob):
        assert (await client.post(path, params=query)).status_code == 403
    assert (await edge.runner.post(path, params=query)).status_code == 200, "a key without a host is for all hosts"
    await edge.ann.delete("/v1/secrets/HF_TOKEN")
    status, text = await ask("gpu-1")
    assert (status, "secret_missing" in text) == (422, True)
    await world.finish_running(running)
    assert (await ask("gpu-1"))[0] == 403, "it has ended"


async def test_a_runner_fetches_them_and_tells_missing_from_not_now(edge: ServedEdge):
    world = edge.world
    await world.announce_capabilities(endpoints=(TTS,))
    await edge.ann.put("/v1/secrets/HF_TOKEN", json={"value": VALUE})
    job = (await world.jobs.submit("ann", {"endpoint": "tts", "input": {}})).entry.record.job
    key = (await edge.keys.create("host-gpu-1", [Scope.RUNNER], host="gpu-1")).text
    async with asset_client(edge.url, key) as client:
        with pytest.raises(SecretsUnavailable, match="answered 403 for the job's secrets: this host does not run"):
            await client.fetch_secrets("ann", job.id)
        await world.start(job)
        assert await client.fetch_secrets("ann", job.id) == {"HF_TOKEN": VALUE}
        await edge.ann.delete("/v1/secrets/HF_TOKEN")
        with pytest.raises(SecretMissing, match=r"^tts needs secrets that are not set \(HF_TOKEN\): "):
            await client.fetch_secrets("ann", job.id)
        with pytest.raises(SecretsUnavailable, match="answered 404"):
            await client.fetch_secrets("ann", "no-such-job")


async def test_readiness_says_that_the_key_file_is_another_one(edge: ServedEdge):
    await edge.ann.put("/v1/secrets/HF_TOKEN", json={"value": VALUE})
    row = await edge.world.bus.secrets.get("owner.ann.HF_TOKEN")
    assert row is not None
    await edge.world.bus.secrets.put("owner.ann.HF_TOKEN", replace(row.value, key_id="0" * 12))
    await edge.services.secrets.check_keys()
    reply = await edge.anyone.get("/readyz")
    assert reply.status_code == 200
    (fault,) = reply.json()["degraded"]
    assert "the key 000000000000 sealed them" in fault
