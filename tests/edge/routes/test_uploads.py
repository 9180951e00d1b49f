"""`/v1/uploads` against tus 1.0.0, header by header."""

import base64
import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from email.utils import parsedate_to_datetime

import anyio
import httpx2
import pytest

from tests.support.served_edge import ServedEdge
from tests.support.wait import wait_for

BODY = bytes(range(256)) * 1000  # 256 kB
SHA = hashlib.sha256(BODY).hexdigest()
VERSION = {"Tus-Resumable": "1.0.0"}
PIECE = VERSION | {"Content-Type": "application/offset+octet-stream"}
HALF = len(BODY) // 2


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def metadata(**pairs: str) -> dict[str, str]:
    return {"Upload-Metadata": ",".join(f"{name} {b64(value)}" for name, value in pairs.items())}


async def created(client: httpx2.AsyncClient, **headers: str) -> str:
    told = VERSION | {"Upload-Length": str(len(BODY))} | {name.replace("_", "-"): v for name, v in headers.items()}
    reply = await client.post("/v1/uploads", headers=told)
    assert reply.status_code == 201, reply.text
    return str(reply.headers["location"])


async def sent(client: httpx2.AsyncClient, url: str, offset: int, body: bytes, **headers: str) -> httpx2.Response:
    told = PIECE | {"Upload-Offset": str(offset)} | {name.replace("_", "-"): v for name, v in headers.items()}
    return await client.patch(url, headers=told, content=body)


async def offset(client: httpx2.AsyncClient, url: str) -> int:
    reply = await client.head(url, headers=VERSION)
    assert reply.status_code == 200
    return int(reply.headers["upload-offset"])


async def test_options_says_what_is_spoken_and_needs_no_key(edge: ServedEdge):
    reply = await edge.anyone.options("/v1/uploads")
    assert reply.status_code == 204
    assert reply.headers["tus-version"] == "1.0.0"
    assert reply.headers["tus-max-size"] == str(1 << 20)
    assert set(reply.headers["tus-extension"].split(",")) == {
        *("creation", "creation-with-upload", "creation-defer-length", "expiration", "checksum", "termination")
    }
    assert {"sha1", "sha256"} <= set(reply.headers["tus-checksum-algorithm"].split(","))


async def test_two_pieces_become_an_asset(edge: ServedEdge):
    url = await created(edge.ann, **metadata(filename="föhn.mp4", sha256=SHA))
    first = await sent(edge.ann, url, 0, BODY[:HALF])
    assert (first.status_code, first.headers["upload-offset"]) == (204, str(HALF))
    assert "lamplighter-asset" not in first.headers
    last = await sent(edge.ann, url, HALF, BODY[HALF:])
    assert (last.status_code, last.headers["lamplighter-asset"]) == (204, f"sha256:{SHA}")
    got = await edge.ann.get(f"/v1/assets/{SHA}")
    assert (got.content, got.headers["content-type"]) == (BODY, "video/mp4")
    (listed,) = (await edge.ann.get("/v1/assets")).json()["assets"]
    assert listed["name"] == "föhn.mp4"
    again = await edge.ann.head(url, headers=VERSION)  # for a client whose last answer was lost
    assert (again.headers["upload-offset"], again.headers["lamplighter-asset"]) == (str(len(BODY)), f"sha256:{SHA}")


async def test_head_tells_offset_length_metadata_and_expiry(edge: ServedEdge):
    told = metadata(filename="a.mp4")
    url = await created(edge.ann, **told)
    await sent(edge.ann, url, 0, BODY[:HALF])
    reply = await edge.ann.head(url, headers=VERSION)
    assert (reply.headers["upload-offset"], reply.headers["upload-length"]) == (str(HALF), str(len(BODY)))
    assert reply.headers["upload-metadata"] == told["Upload-Metadata"]
    assert (reply.headers["cache-control"], reply.headers["tus-resumable"]) == ("no-store", "1.0.0")
    expires = parsedate_to_datetime(reply.headers["upload-expires"])
    assert timedelta(hours=23) < expires - edge.world.time() <= timedelta(hours=24)


async def test_a_wrong_offset_is_409_and_changes_nothing(edge: ServedEdge):
    url = await created(edge.ann)
    await sent(edge.ann, url, 0, BODY[:HALF])
    for wrong in (0, HALF - 1, HALF + 1):
        reply = await sent(edge.ann, url, wrong, BODY[HALF:])
        assert (reply.status_code, reply.json()["code"]) == (409, "offset_mismatch")
    assert await offset(edge.ann, url) == HALF


async def test_other_versions_types_and_numbers_are_refused(edge: ServedEdge):
    url = await created(edge.ann)
    for reply in (
        await edge.ann.post("/v1/uploads", headers={"Upload-Length": "1"}),
        await edge.ann.patch(url, headers=PIECE | {"Tus-Resumable": "0.2.2", "Upload-Offset": "0"}, content=b"x"),
        await edge.ann.head(url, headers={"Tus-Resumable": "2.0.0"}),
    ):
        assert (reply.status_code, reply.headers["tus-version"]) == (412, "1.0.0")
    plain = await edge.ann.patch(url, headers=VERSION | {"Upload-Offset": "0", "Content-Type": "text/plain"})
    assert plain.status_code == 415
    for headers in ({}, {"Upload-Length": "-1"}, {"Upload-Length": "1", "Upload-Defer-Length": "1"}):
        assert (await edge.ann.post("/v1/uploads", headers=VERSION | headers)).status_code == 422
    for bad in ("filename not-base64!", f"sha256 {b64('nonsense')}", "x " + "A" * 5000):
        headers = VERSION | {"Upload-Length": "1", "Upload-Metadata": bad}
        assert (await edge.ann.post("/v1/uploads", headers=headers)).status_code == 422
    assert (await edge.ann.patch(url, headers=PIECE, content=b"x")).status_code == 422


async def test_more_than_is_allowed_or_announced_is_413(edge: ServedEdge):
    limit = 1 << 20
    reply = await edge.ann.post("/v1/uploads", headers=VERSION | {"Upload-Length": str(limit + 1)})
    assert (reply.status_code, reply.json()["code"]) == (413, "body_too_large")
    url = await created(edge.ann, Upload_Length="3")
    assert (await sent(edge.ann, url, 0, b"four")).status_code == 413
    assert await offset(edge.ann, url) == 0

    async def unannounced() -> AsyncIterator[bytes]:
        yield b"four"

    chunked = await edge.ann.patch(url, headers=PIECE | {"Upload-Offset": "0"}, content=unannounced())
    assert chunked.status_code == 413
    assert (await sent(edge.ann, url, 0, b"two")).status_code == 204


async def test_a_wrong_digest_is_422_and_ends_the_upload(edge: ServedEdge):
    url = await created(edge.ann, **metadata(sha256="0" * 64))
    reply = await sent(edge.ann, url, 0, BODY)
    assert (reply.status_code, reply.json()["code"]) == (422, "digest_mismatch")
    assert (await edge.ann.head(url, headers=VERSION)).status_code == 404
    assert (await edge.ann.get("/v1/assets")).json()["assets"] == []


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
async def test_a_piece_counts_only_with_its_checksum(edge: ServedEdge, algorithm: str):
    url = await created(edge.ann)
    digest = hashlib.new(algorithm, BODY[:HALF]).digest()
    told = {"Upload-Checksum": f"{algorithm} {b64(digest)}"}
    spoilt = await sent(edge.ann, url, 0, BODY[1 : HALF + 1], **told)
    assert (spoilt.status_code, await offset(edge.ann, url)) == (460, 0)
    assert (await sent(edge.ann, url, 0, BODY[:HALF], **told)).status_code == 204
    last = await sent(edge.ann, url, HALF, BODY[HALF:])
    assert last.headers["lamplighter-asset"] == f"sha256:{SHA}"
    unknown = await sent(edge.ann, url, len(BODY), b"", **{"Upload-Checksum": "crc32 AAAA"})
    assert unknown.status_code == 422


async def test_a_body_with_the_creation_is_the_first_piece(edge: ServedEdge):
    headers = PIECE | {"Upload-Length": str(len(BODY))}
    half = await edge.ann.post("/v1/uploads", headers=headers, content=BODY[:HALF])
    assert (half.status_code, half.headers["upload-offset"]) == (201, str(HALF))
    whole = await edge.ann.post("/v1/uploads", headers=headers, content=BODY)
    assert (whole.status_code, whole.headers["lamplighter-asset"]) == (201, f"sha256:{SHA}")


async def test_an_empty_file_is_whole_when_it_is_created(edge: ServedEdge):
    reply = await edge.ann.post("/v1/uploads", headers=VERSION | {"Upload-Length": "0"})
    assert reply.headers["lamplighter-asset"] == f"sha256:{hashlib.sha256(b'').hexdigest()}"


async def test_the_length_may_come_with_the_last_piece(edge: ServedEdge):
    reply = await edge.ann.post("/v1/uploads", headers=VERSION | {"Upload-Defer-Length": "1"})
    url = reply.headers["location"]
    await sent(edge.ann, url, 0, BODY[:HALF])
    assert (await edge.ann.head(url, headers=VERSION)).headers["upload-defer-length"] == "1"
    last = await sent(edge.ann, url, HALF, BODY[HALF:], Upload_Length=str(len(BODY)))
    assert last.headers["lamplighter-asset"] == f"sha256:{SHA}"
    assert (await sent(edge.ann, url, len(BODY), b"", Upload_Length="1")).status_code == 422


async def test_a_deleted_upload_is_gone_and_its_bytes_with_it(edge: ServedEdge):
    url = await created(edge.ann)
    await sent(edge.ann, url, 0, BODY[:HALF])
    assert (await edge.ann.delete(url, headers=VERSION)).status_code == 204
    assert (await edge.ann.head(url, headers=VERSION)).status_code == 404
    assert (await sent(edge.ann, url, HALF, BODY[HALF:])).status_code == 404
    assert edge.world.upload_states.list_keys() == []


async def test_anothers_upload_is_none(edge: ServedEdge):
    url = await created(edge.ann)
    assert (await edge.bob.head(url, headers=VERSION)).status_code == 404
    assert (await sent(edge.bob, url, 0, BODY)).status_code == 404
    assert (await edge.bob.delete(url, headers=VERSION)).status_code == 404
    assert (await edge.anyone.head(url, headers=VERSION)).status_code == 401
    assert await offset(edge.ann, url) == 0


async def test_a_post_may_stand_for_patch_and_delete(edge: ServedEdge):
    url = await created(edge.ann)
    headers = PIECE | {"Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    assert (await edge.ann.post(url, headers=headers, content=BODY)).headers["upload-offset"] == str(len(BODY))
    assert (await edge.ann.post(url, headers=VERSION | {"X-HTTP-Method-Override": "DELETE"})).status_code == 204
    assert (await edge.ann.post(url, headers=VERSION | {"X-HTTP-Method-Override": "GET"})).status_code == 422


class Paused:
    """Yield the first half of the body at once, and the rest after `go` is set."""

    def __init__(self) -> None:
        self.halfway, self.go = anyio.Event(), anyio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield BODY[:HALF]
        self.halfway.set()
        await self.go.wait()
        yield BODY[HALF:]


async def test_a_second_piece_meanwhile_is_locked_out(edge: ServedEdge):
    url, busy = await created(edge.ann), anyio.Event()
    replies: list[httpx2.Response] = []

    async def dripping() -> AsyncIterator[bytes]:
        while not busy.is_set():
            yield b"."
            with anyio.move_on_after(0.1):
                await busy.wait()

    async def first() -> None:
        replies.append(await edge.ann.patch(url, headers=PIECE | {"Upload-Offset": "0"}, content=dripping()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first)
        (held,) = edge.world.uploads._uploads.values()

        async def begun() -> bool:
            return held.writer.is_held

        await wait_for(begun)
        second = await sent(edge.ann, url, 0, BODY)
        assert (second.status_code, second.json()["code"]) == (423, "upload_locked")
        assert await offset(edge.ann, url) == 0
        assert held.writer.is_held, "a client that sends was cut off"
        busy.set()
    assert replies[0].status_code == 204


async def test_a_connection_that_fell_silent_gives_way_and_what_it_brought_counts(edge: ServedEdge):
    url, body = await created(edge.ann), Paused()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: edge.ann.patch(url, headers=PIECE | {"Upload-Offset": "0"}, content=aiter(body)))
        await body.halfway.wait()
        at = await offset(edge.ann, url)
        assert at == HALF
        assert (await sent(edge.ann, url, at, BODY[at:])).headers["lamplighter-asset"] == f"sha256:{SHA}"
        body.go.set()


async def test_what_expired_is_gone_when_asked_and_when_swept(edge: ServedEdge):
    asked, swept = await created(edge.ann), await created(edge.ann)
    await sent(edge.ann, swept, 0, BODY[:HALF])
    edge.world.time.advance(hours=24, seconds=1)
    assert (await edge.ann.head(asked, headers=VERSION)).status_code == 404
    await edge.world.uploads.sweep()
    assert edge.world.upload_states.list_keys() == []
    assert (await edge.ann.head(swept, headers=VERSION)).status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Upload-Checksum": "sha1 nonsense"}, 422),
        ({"Upload-Checksum": f"sha1 {b64(bytes(20))}"}, 460),
        (metadata(sha256="0" * 64), 422),
    ],
)
async def test_a_rejected_creation_with_upload_leaves_no_upload(edge: ServedEdge, headers: dict[str, str], status: int):
    """The client would never learn the URL of the upload."""
    length = {"Upload-Length": str(len(BODY))}
    reply = await edge.ann.post("/v1/uploads", headers=PIECE | length | headers, content=BODY)
    assert reply.status_code == status, reply.text
    assert not edge.world.uploads._uploads
