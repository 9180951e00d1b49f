"""`lamplighter audit` against a served edge."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from tests.support.served_edge import ServedEdge
from tests.support.wait import WAIT_TIMEOUT_S


def argv(face: ServedEdge, *words: str) -> list[str]:
    return [sys.executable, "-m", "lamplighter", "audit", *words, "--url", face.url, "--key", face.texts["admin"]]


async def make_keys(face: ServedEdge, *owners: str) -> list[str]:
    replies = [(await face.admin.post("/v1/keys", json={"owner": owner})).json() for owner in owners]
    return [made["id"] for made in replies]


async def test_events_are_shown_newest_first_and_filtered(face: ServedEdge) -> None:
    made = await make_keys(face, "carl", "dora", "carl")
    told = (await anyio.run_process(argv(face))).stdout.decode()
    assert [line.split()[2:5] for line in told.splitlines()[1:]] == [
        ["key_created", made[2], "carl"],
        ["key_created", made[1], "dora"],
        ["key_created", made[0], "carl"],
    ]
    shown = json.loads((await anyio.run_process(argv(face, "--owner", "carl", "--limit", "1", "--json"))).stdout)
    assert [event["subject"] for event in shown] == [made[2]]
    none = (await anyio.run_process(argv(face, "--action", "host_added"))).stdout.decode()
    assert none.strip() == "no events"


@asynccontextmanager
async def followed(face: ServedEdge) -> AsyncIterator[BufferedByteReceiveStream]:
    process = await anyio.open_process(argv(face, "--follow", "--json"))
    assert process.stdout is not None
    try:
        yield BufferedByteReceiveStream(process.stdout)
    finally:
        process.kill()
        await process.aclose()


async def test_follow_prints_what_is_there_and_what_comes_once_each(face: ServedEdge) -> None:
    made = await make_keys(face, "carl", "dora")
    async with followed(face) as lines:
        with anyio.fail_after(WAIT_TIMEOUT_S):
            seen = [json.loads(await lines.receive_until(b"\n", 10_000))["subject"] for _ in made]
            made += await make_keys(face, "emil")
            seen.append(json.loads(await lines.receive_until(b"\n", 10_000))["subject"])
    assert seen == made
