"""`lamplighter endpoints pause|resume` and `hosts maintenance` against a served edge."""

import json
import sys
from typing import Any

import anyio

from tests.support.served_edge import ServedEdge


async def lamplighter(face: ServedEdge, *words: str) -> str:
    argv = [sys.executable, "-m", "lamplighter", *words, "--url", face.url, "--key", face.texts["admin"]]
    return (await anyio.run_process(argv)).stdout.decode()


async def read_host(face: ServedEdge, host: str) -> dict[str, Any]:
    (found,) = (one for one in json.loads(await lamplighter(face, "hosts", "--json")) if one["id"] == host)
    return dict(found)


async def test_a_pause_is_shown_until_it_ends(face: ServedEdge) -> None:
    paused = await lamplighter(face, "endpoints", "pause", "echo")
    assert paused == "endpoint echo is paused: `lamplighter endpoints resume` ends that\n"
    assert "(paused)" in await lamplighter(face, "endpoints")
    (echo,) = json.loads(await lamplighter(face, "endpoints", "--json"))
    assert echo["paused"]["by"] == "admin"
    assert json.loads(await lamplighter(face, "endpoints", "echo", "--json"))["paused"] == echo["paused"]
    assert await lamplighter(face, "endpoints", "resume", "echo") == "endpoint echo is not paused any more\n"
    assert "(paused)" not in await lamplighter(face, "endpoints", "list")


async def test_maintenance_is_shown_until_it_ends(face: ServedEdge) -> None:
    await face.world.announce_capabilities()
    await face.world.send_heartbeat()
    assert await lamplighter(face, "hosts", "maintenance", "gpu-1") == "host gpu-1 is in maintenance\n"
    assert (await read_host(face, "gpu-1"))["maintenance"]["by"] == "admin"
    ended = await lamplighter(face, "hosts", "maintenance", "gpu-1", "--end")
    assert ended == "host gpu-1 is no longer in maintenance\n"
    assert (await read_host(face, "gpu-1"))["maintenance"] is None
