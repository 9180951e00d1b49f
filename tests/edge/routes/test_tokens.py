"""Signed URLs and tokens: they work without a header, for their path and owner only, and for a limited time."""

from urllib.parse import urlsplit

import httpx2
import pytest
from msgspec.structs import replace

from edge.core.installation import get_or_create_secret
from edge.owners.signed_credentials import PurposeHmac, TokenIssuer, UrlSettings, UrlSigner
from schemas import events as e
from schemas.credentials import Scope
from schemas.job import JobKey, Output, OutputFile
from tests.support.edge_services import SECRET, START, FixedEntropy
from tests.support.served_edge import ServedEdge

NAME = "my résult.mp4"


async def finished(edge: ServedEdge) -> str:
    """Return the signed URL of ann's output."""
    await edge.ann.put("/v1/jobs/mine", json={"endpoint": "echo", "input": {}})
    await edge.world.start((await edge.world.jobs.read(JobKey("ann", "mine"))).record.job)
    digest = await edge.world.put("ann", b"0123456789", NAME)
    await edge.world.write_event(
        JobKey("ann", "mine"), e.Succeeded(Output((OutputFile(NAME, digest, 10, "video/mp4"),)))
    )
    job = (await edge.ann.get("/v1/jobs/mine")).json()
    return str(job["output"]["files"][0]["url"])


async def token(client: httpx2.AsyncClient, **asked: object) -> str:
    reply = await client.post("/v1/tokens", json=asked)
    assert reply.status_code == 201, reply.text
    return str(reply.json()["token"])


async def test_a_jobs_file_url_plays_without_a_header(edge: ServedEdge):
    url = await finished(edge)
    part = await edge.anyone.get(url, headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content, part.headers["content-type"]) == (206, b"234", "video/mp4")
    assert (await edge.anyone.head(url)).status_code == 200
    assert (await edge.bob.get(url)).content == b"0123456789"  # it works for whoever has it, with any key
    assert (await edge.ann.get(urlsplit(url).path)).content == b"0123456789"  # and the plain path with the owner's
    assert (await edge.ann.get("/v1/jobs/mine")).json()["output"]["files"][0]["url"] == url, "a player would start anew"


async def test_a_signature_is_for_its_path_owner_and_time_alone(edge: ServedEdge):
    url = httpx2.URL(f"{edge.url}{await finished(edge)}")
    other = await edge.world.put("ann", b"other", "other")
    changed = [
        url.copy_with(path="/v1/jobs/mine"),
        url.copy_with(path=f"/v1/assets/{other}"),
        url.copy_set_param("owner", "bob"),
        url.copy_set_param("expires", int(url.params["expires"]) + 1),
        url.copy_set_param("expires", "x"),
        url.copy_set_param("signature", url.params["signature"][:-2] + "AA"),
        url.copy_set_param("signature", "é"),
        url.copy_remove_param("signature"),
    ]
    for wrong in changed:
        assert (await edge.anyone.get(wrong)).status_code == 401, wrong
    path = url.copy_with(path="/v1/jobs/mine/cancel")
    assert (await edge.anyone.post(path)).status_code == 401
    edge.world.time.advance(seconds=3600 * 1.25 + 1)
    assert (await edge.anyone.get(url)).status_code == 401


async def test_every_edge_signs_with_the_secret_that_the_first_one_made(edge: ServedEdge):
    table = edge.world.bus.installation_constants
    first = await get_or_create_secret(table, FixedEntropy(), edge.world.time)
    assert await get_or_create_secret(table, bytes, edge.world.time) == first
    one, two = [UrlSigner(first, edge.world.time, UrlSettings(base=base)) for base in ("", "https://edge.example/")]
    link = httpx2.URL(two.sign_url("ann", "/v1/x"))
    assert str(link).startswith("https://edge.example/v1/x?owner=ann&expires=")
    key = one.key_for_url("/v1/x", link.params)
    assert key is not None
    assert key.owner == "ann"
    assert UrlSigner(SECRET, edge.world.time, UrlSettings()).key_for_url("/v1/x", link.params) is None


async def test_a_token_watches_and_nothing_else(edge: ServedEdge):
    await edge.ann.put("/v1/jobs/mine", json={"endpoint": "echo", "input": {}})
    query = {"token": await token(edge.ann)}
    assert (await edge.anyone.get("/v1/jobs/mine", params=query)).status_code == 200
    assert (await edge.anyone.get("/v1/hosts", params=query)).status_code == 403
    assert (await edge.anyone.post("/v1/jobs/mine/cancel", params=query)).status_code == 403
    async with edge.anyone.stream("GET", "/v1/jobs/mine/events", params=query) as events:
        assert events.status_code == 200
    bobs = {"token": await token(edge.bob)}
    assert (await edge.anyone.get("/v1/jobs/mine", params=bobs)).status_code == 404


async def test_a_token_may_do_no_more_than_its_key(edge: ServedEdge):
    asked = {"scopes": ["power"]}
    reply = await edge.ann.post("/v1/tokens", json=asked)
    assert (reply.status_code, reply.json()["code"]) == (403, "forbidden")
    writing = await token(edge.ann, scopes=["jobs:write"])
    sent = await edge.anyone.post("/v1/jobs", params={"token": writing}, json={"endpoint": "echo", "input": {}})
    assert sent.status_code == 202
    more = await edge.anyone.post("/v1/tokens", params={"token": writing}, json={"scopes": ["jobs:read"]})
    assert more.status_code == 403
    implied = await token(edge.admin, scopes=["jobs:read"])
    assert (await edge.anyone.get("/v1/jobs", params={"token": implied})).status_code == 200
    assert (await edge.anyone.get("/v1/jobs", params={"token": implied, "owner": "ann"})).status_code == 403


@pytest.mark.parametrize("asked", [{"ttl_s": 0}, {"ttl_s": 86_401}, {"scopes": []}, {"scopes": ["all"]}])
async def test_what_is_no_token_is_refused(edge: ServedEdge, asked: dict[str, object]):
    assert (await edge.ann.post("/v1/tokens", json=asked)).status_code == 422
    assert (await edge.anyone.post("/v1/tokens", json={})).status_code == 401


async def test_a_token_ends_and_cannot_put_its_end_off(edge: ServedEdge):
    first = await token(edge.ann, ttl_s=60)
    reply = await edge.anyone.post("/v1/tokens", params={"token": first}, json={"ttl_s": 3600})
    second = reply.json()["token"]
    edge.world.time.advance(seconds=61)
    for ended in (first, second):
        assert (await edge.anyone.get("/v1/jobs", params={"token": ended})).status_code == 401


async def test_a_token_dies_with_its_key(edge: ServedEdge):
    key = (await edge.admin.post("/v1/keys", json={"owner": "ann"})).json()
    async with httpx2.AsyncClient(base_url=edge.url, headers={"X-API-Key": key["key"]}, timeout=60) as client:
        query = {"token": await token(client)}
    assert (await edge.anyone.get("/v1/jobs", params=query)).status_code == 200
    await edge.keys.revoke(key["id"])
    assert (await edge.anyone.get("/v1/jobs", params=query)).status_code == 401


async def test_a_token_that_was_tampered_with_is_a_strangers(edge: ServedEdge):
    text = await token(edge.ann)
    body, _, seal = text.partition(".")
    for wrong in (f"{body}.{seal[:-2]}AA", f"{body[:-4]}AAAA.{seal}", body, "lampt_", "lampt_.", f"{body}é.{seal}"):
        assert (await edge.anyone.get("/v1/jobs", params={"token": wrong})).status_code == 401, wrong


async def test_scopes_are_asked_for_by_name(edge: ServedEdge):
    made = (await edge.ann.post("/v1/tokens", json={})).json()
    assert made["scopes"] == [Scope.JOBS_READ, Scope.ASSETS_READ]
    assert made["expires_at"].endswith("Z")


async def test_a_signature_reads_and_does_not_write(edge: ServedEdge):
    await edge.ann.put("/v1/jobs/mine", json={"endpoint": "echo", "input": {}})
    read, cancel = (edge.world.signer.sign_url("ann", f"/v1/jobs/mine{path}") for path in ("/logs", "/cancel"))
    assert (await edge.anyone.get(read)).status_code != 401
    assert (await edge.anyone.post(cancel)).status_code == 401
    assert (await edge.ann.get("/v1/jobs/mine")).json()["status"] == "queued"


@pytest.mark.parametrize(
    ("owner", "expires", "is_valid"),
    [("ann", "99999999999", True), ("ann", "999999999999", False), ("a.b", "99999999999", False), ("", "9", False)],
)
def test_a_claim_is_read_strictly_though_it_is_signed(owner: str, expires: str, is_valid: bool):
    signer = UrlSigner(SECRET, lambda: START, UrlSettings())
    query = {"owner": owner, "expires": expires, "signature": PurposeHmac(SECRET, "url").sign("/v1/x", owner, expires)}
    assert (signer.key_for_url("/v1/x", query) is not None) is is_valid


async def test_a_token_ends_when_its_key_loses_a_scope(edge: ServedEdge):
    tokens = TokenIssuer(SECRET, edge.keys.get, edge.world.time)
    key = await edge.keys.authenticate(edge.texts["ann"])
    assert key is not None
    more = replace(key, scopes=(*key.scopes, Scope.POWER))
    for scopes, is_valid in (([Scope.JOBS_READ], True), ([Scope.JOBS_READ, Scope.POWER], False)):
        issued = tokens.issue(more, scopes, 60.0)
        assert (await tokens.verify(issued.text) is not None) is is_valid
