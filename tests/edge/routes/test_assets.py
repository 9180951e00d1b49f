"""`/v1/assets`: upload, read, list and delete files."""

import hashlib

import pytest

from schemas.endpoint_parts import VOLUMES_OWNER
from tests.support.served_edge import ServedEdge

BODY = b"some bytes of a video"
SHA = hashlib.sha256(BODY).hexdigest()


async def test_put_is_201_then_200_and_each_owner_has_its_own(edge: ServedEdge):
    first = await edge.ann.put(f"/v1/assets/{SHA}", content=BODY, headers={"X-Filename": "my%20face.mp4"})
    again = await edge.ann.put(f"/v1/assets/sha256:{SHA}", content=BODY)
    assert [first.status_code, again.status_code] == [201, 200]
    assert (first.json()["digest"], first.json()["bytes"], first.json()["name"]) == (f"sha256:{SHA}", 21, "my face.mp4")
    assert (await edge.bob.get(f"/v1/assets/{SHA}")).status_code == 404
    assert (await edge.bob.head(f"/v1/assets/{SHA}")).status_code == 404
    assert (await edge.bob.put(f"/v1/assets/{SHA}", content=BODY)).status_code == 201


async def test_a_wrong_digest_leaves_nothing(edge: ServedEdge):
    reply = await edge.ann.put(f"/v1/assets/{'0' * 64}", content=BODY)
    assert (reply.status_code, reply.json()["code"]) == (422, "digest_mismatch")
    assert (await edge.ann.get("/v1/assets")).json()["assets"] == []
    assert await edge.world.store.stat(SHA) is None


async def test_too_large_leaves_nothing(edge: ServedEdge):
    reply = await edge.ann.post("/v1/assets", content=b"x" * ((1 << 20) + 1))
    assert (reply.status_code, reply.json()["code"]) == (413, "body_too_large")
    assert (await edge.ann.get("/v1/assets")).json()["assets"] == []


async def test_post_computes_the_digest_raw_and_as_a_form(edge: ServedEdge):
    raw = await edge.ann.post("/v1/assets?name=a.wav", content=BODY)
    form = await edge.ann.post("/v1/assets", files={"file": ("b.mp4", b"other", "video/mp4")})
    assert (raw.status_code, raw.json()["sha256"], raw.json()["media_type"]) == (201, SHA, "audio/wav")
    assert (form.status_code, form.json()["name"], form.json()["media_type"]) == (201, "b.mp4", "video/mp4")
    listed = (await edge.ann.get("/v1/assets?limit=1")).json()
    rest = (await edge.ann.get("/v1/assets", params={"cursor": listed["next_cursor"]})).json()
    assert [a["name"] for a in listed["assets"] + rest["assets"]] == ["b.mp4", "a.wav"]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("application/x-www-form-urlencoded", "video/mp4"),  # what `curl --data-binary` says of anything
        ("application/octet-stream", "video/mp4"),
        ("vid\xff/x", "video/mp4"),
        ("nonsense", "video/mp4"),
        ("video/webm", "video/webm"),
    ],
)
async def test_a_type_that_says_nothing_gives_way_to_the_name(edge: ServedEdge, sent, kept):
    headers = {"Content-Type": sent.encode("latin-1")}
    raw = await edge.ann.post("/v1/assets?name=a.mp4", content=b"x", headers=headers)
    form = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.mp4"\r\nContent-Type: '
    form += sent.encode() + b"\r\n\r\ny\r\n--x--\r\n"
    sent_form = {"Content-Type": "multipart/form-data; boundary=x"}
    part = await edge.bob.post("/v1/assets", content=form, headers=sent_form)
    assert [raw.json()["media_type"], part.json()["media_type"]] == [kept, kept]
    assert (await edge.bob.get(part.json()["url"])).headers["content-type"] == kept


async def test_names_cannot_leave_their_folder(edge: ServedEdge):
    for name in ("../../etc/passwd", "..\\..\\boot.ini", "a%2F..%2Fb", "\u202egnp.exe", "con"):
        reply = await edge.ann.post("/v1/assets", params={"name": name}, content=name.encode())
        assert reply.status_code == 201
        kept = reply.json()["name"]
        assert not set(kept) & set('/\\\0\u202e"')
        assert kept not in {"", ".", ".."}


async def test_check_tells_present_from_missing(edge: ServedEdge):
    await edge.ann.put(f"/v1/assets/{SHA}", content=BODY)
    asked = {"digests": [f"sha256:{SHA}", "f" * 64]}
    reply = await edge.ann.post("/v1/assets/check", json=asked)
    assert reply.json() == {"present": [f"sha256:{SHA}"], "missing": ["sha256:" + "f" * 64]}
    assert (await edge.bob.post("/v1/assets/check", json=asked)).json()["present"] == []
    for bad in ({}, {"digests": ["x"]}, {"digests": 5}, {"digests": ["f" * 64] * 1001}):
        assert (await edge.ann.post("/v1/assets/check", json=bad)).json()["code"] == "input_invalid", bad
    unknown = await edge.ann.post("/v1/assets/check", json={"digests": [], "more": 1})
    assert (unknown.status_code, unknown.json()["errors"][0]["path"]) == (400, "$.more")


async def test_delete_drops_the_reference_and_says_so(edge: ServedEdge):
    await edge.ann.put(f"/v1/assets/{SHA}", content=BODY)
    reply = await edge.ann.delete(f"/v1/assets/{SHA}", headers={"Accept-Language": "zh"})
    assert (reply.status_code, reply.json()["message"]) == (202, "删除成功")
    assert (await edge.ann.delete(f"/v1/assets/{SHA}")).json()["code"] == "not_found"
    assert (await edge.ann.get(f"/v1/assets/{SHA}")).status_code == 404


async def test_an_asset_that_a_living_job_needs_stays(edge: ServedEdge):
    await edge.ann.put(f"/v1/assets/{SHA}", content=BODY)
    job = {"endpoint": "echo", "input": {"file": f"sha256:{SHA}"}}
    await edge.ann.put("/v1/jobs/mine", json=job)
    reply = await edge.ann.delete(f"/v1/assets/{SHA}")
    assert (reply.status_code, reply.json()["code"]) == (409, "asset_in_use")
    await edge.ann.post("/v1/jobs/mine/cancel")
    assert (await edge.ann.delete(f"/v1/assets/{SHA}")).status_code == 202


@pytest.mark.parametrize("digest", ["x", "g" * 64, "a" * 63, "..%5Cx", "sha256:"])
async def test_what_is_no_digest_is_refused(edge: ServedEdge, digest):
    for method in ("GET", "PUT", "DELETE"):
        reply = await edge.ann.request(method, f"/v1/assets/{digest}", content=b"x" if method == "PUT" else None)
        assert (reply.status_code, reply.json()["code"]) == (422, "input_invalid")


async def test_a_runner_writes_and_reads_in_a_jobs_owners_name(edge: ServedEdge):
    await edge.world.announce_capabilities()
    await edge.ann.put(f"/v1/assets/{SHA}", content=BODY)
    accepted = await edge.world.jobs.submit("ann", {"endpoint": "echo", "input": {"file": f"sha256:{SHA}"}})
    await edge.world.start(accepted.entry.record.job)
    made = b"what the job made"
    reply = await edge.runner.put(f"/v1/assets/{hashlib.sha256(made).hexdigest()}?owner=ann", content=made)
    assert reply.status_code == 201
    assert (await edge.ann.get(reply.headers["location"])).content == made
    assert (await edge.runner.get(f"/v1/assets/{SHA}?owner=ann")).content == BODY
    assert (await edge.runner.put(f"/v1/assets/{SHA}?owner=a.b", content=BODY)).status_code == 422
    assert (await edge.bob.put(f"/v1/assets/{SHA}?owner=ann", content=BODY)).status_code == 403


async def test_every_runner_reads_the_files_of_volumes_and_nobody_else_does(edge: ServedEdge):
    await edge.world.put(VOLUMES_OWNER, BODY)
    path = f"/v1/assets/{SHA}?owner={VOLUMES_OWNER}"
    assert (await edge.runner.get(path)).content == BODY
    assert (await edge.runner.head(path)).headers["content-length"] == str(len(BODY))
    assert (await edge.ann.get(path)).status_code == 403
    assert (await edge.runner.put(path, content=BODY)).status_code == 403
    assert (await edge.runner.get(f"/v1/assets/{SHA}?owner=bob")).status_code == 403
