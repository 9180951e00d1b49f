"""M3: uploads that come at the same time must not each have what is left of the quota.

40 interleaved POSTs stored 40 MB where 5 MB were allowed.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import ByteStream

from edge.owners.quotas import OwnerQuotaOverride
from tests.attack.conftest import AttackTarget, read_response
from tests.edge.routes.conftest import edge
from tests.support.served_edge import ServedEdge

__all__ = ["edge"]

QUOTA = 1_000_000
SIZE = 400_000
COUNT = 20


def post(edge: ServedEdge, *, chunked: bool) -> bytes:
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {SIZE}"
    return f"POST /v1/assets HTTP/1.1\r\nHost: x\r\nX-API-Key: {edge.texts['ann']}\r\n{length}\r\n\r\n".encode()


def halves(number: int, *, chunked: bool) -> tuple[bytes, bytes]:
    """Send a different file in two chunks."""
    half = f"{number:04}".encode() * (SIZE // 8)
    if not chunked:
        return half, half
    framed = f"{len(half):x}\r\n".encode() + half + b"\r\n"
    return framed, framed + b"0\r\n\r\n"


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_interleaved_uploads_store_no_more_than_is_left(edge: ServedEdge, *, chunked: bool):
    edge.world.limits["ann"] = OwnerQuotaOverride(bytes=QUOTA)
    target = AttackTarget(int(edge.url.rsplit(":", 1)[1]), tls=False)
    said: list[bytes] = []

    async def talk(stream: ByteStream, number: int, begun: anyio.Event) -> None:
        first, second = halves(number, chunked=chunked)
        try:
            await stream.send(post(edge, chunked=chunked) + first)
            await begun.wait()
            await stream.send(second)
        except anyio.BrokenResourceError:  # it was refused, and the answer waits
            pass
        said.append(await read_response(stream, within_s=30))

    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(target.connected()) for _ in range(COUNT)]
        begun = anyio.Event()
        async with anyio.create_task_group() as tasks:
            for number, stream in enumerate(streams):
                tasks.start_soon(talk, stream, number, begun)
            await anyio.wait_all_tasks_blocked()
            begun.set()
    stored = (await edge.ann.get("/v1/assets")).json()["assets"]
    assert sum(asset["bytes"] for asset in stored) <= QUOTA
    assert sum(b"HTTP/1.1 201 " in one for one in said) == len(stored)
    # Whoever was refused left nothing reserved: what is left can be used to the last byte.
    left = QUOTA - sum(asset["bytes"] for asset in stored)
    assert (await edge.ann.post("/v1/assets", content=b"z" * left)).status_code == 201
    assert (await edge.ann.post("/v1/assets", content=b"y")).status_code == 429


async def test_with_their_length_said_as_many_are_stored_as_fit(edge: ServedEdge):
    edge.world.limits["ann"] = OwnerQuotaOverride(bytes=QUOTA)

    async def slowly(number: int) -> AsyncIterator[bytes]:
        for piece in halves(number, chunked=False):
            yield piece
            await anyio.lowlevel.checkpoint()

    codes = []

    async def upload(number: int) -> None:
        reply = await edge.ann.post("/v1/assets", content=slowly(number), headers={"Content-Length": str(SIZE)})
        codes.append(reply.status_code)

    async with anyio.create_task_group() as tasks:
        for number in range(COUNT):
            tasks.start_soon(upload, number)
    assert codes.count(201) == QUOTA // SIZE
    assert set(codes) == {201, 429}


async def test_resumable_uploads_begun_at_once_are_promised_no_more_than_is_left(edge: ServedEdge):
    edge.world.limits["ann"] = OwnerQuotaOverride(bytes=QUOTA)
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": str(QUOTA)}
    codes = []

    async def begin() -> None:
        codes.append((await edge.ann.post("/v1/uploads", headers=headers)).status_code)

    async with anyio.create_task_group() as tasks:
        for _ in range(COUNT):
            tasks.start_soon(begin)
    assert codes.count(201) == 1
    assert set(codes) == {201, 429}


async def begun_without_length(edge: ServedEdge, count: int) -> list[str]:
    headers = {"Tus-Resumable": "1.0.0", "Upload-Defer-Length": "1"}
    return [(await edge.ann.post("/v1/uploads", headers=headers)).headers["Location"] for _ in range(count)]


async def test_uploads_without_a_length_bring_no_more_than_is_left(edge: ServedEdge):
    edge.world.limits["ann"] = OwnerQuotaOverride(bytes=QUOTA)
    places = await begun_without_length(edge, COUNT)
    all_begun, waiting, codes = anyio.Event(), 0, []

    async def pieces(number: int) -> AsyncIterator[bytes]:
        nonlocal waiting
        first, second = halves(number, chunked=False)
        yield first
        waiting += 1
        if waiting == COUNT:
            all_begun.set()
        await all_begun.wait()
        yield second

    async def bring(number: int, place: str) -> None:
        headers = {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream", "Tus-Resumable": "1.0.0"}
        codes.append((await edge.ann.patch(place, content=pieces(number), headers=headers)).status_code)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for number, place in enumerate(places):
                tasks.start_soon(bring, number, place)
    heads = [await edge.ann.head(place, headers={"Tus-Resumable": "1.0.0"}) for place in places]
    brought = sum(int(head.headers["Upload-Offset"]) for head in heads)
    assert brought <= QUOTA
    assert set(codes) <= {204, 429}
    # What was refused is not reserved any more: the rest can be used to the last byte.
    assert (await edge.ann.post("/v1/assets", content=b"z" * (QUOTA - brought))).status_code == 201
    assert (await edge.ann.post("/v1/assets", content=b"y")).status_code == 429


async def test_lengths_that_are_said_later_and_at_once_are_promised_no_more_than_is_left(edge: ServedEdge):
    edge.world.limits["ann"] = OwnerQuotaOverride(bytes=QUOTA)
    places = await begun_without_length(edge, COUNT)
    codes = []

    async def say(place: str) -> None:
        headers = {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream", "Tus-Resumable": "1.0.0"}
        reply = await edge.ann.patch(place, content=b"x", headers=headers | {"Upload-Length": str(QUOTA)})
        codes.append(reply.status_code)

    async with anyio.create_task_group() as tasks:
        for place in places:
            tasks.start_soon(say, place)
    assert sorted(codes) == [204] + [429] * (COUNT - 1)
