"""Assets: references, bytes and tombstones."""

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from schemas.problems import ProblemError
from tests.support.edge_services import EdgeServicesRig

BODY = b"a film"
DIGEST = hashlib.sha256(BODY).hexdigest()


async def body(data: bytes = BODY) -> AsyncIterator[bytes]:
    yield data


async def refused(code: str, coroutine: Any) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        await coroutine
    assert caught.value.code == code
    return caught.value


async def test_the_first_upload_makes_a_reference_and_the_second_finds_it(edge: EdgeServicesRig) -> None:
    first = await edge.assets.put("ann", body(), DIGEST, "../a b.mp4", "video/mp4")
    again = await edge.assets.put("ann", body(), None, "other.mp4", "video/mp4")
    assert (first[0].name, first[0].bytes, first[1:], again[1:]) == ("a b.mp4", 6, (DIGEST, True), (DIGEST, False))
    assert again[0].name == "a b.mp4"
    assert again[0].last_used_at > first[0].last_used_at


async def test_a_wrong_digest_and_a_large_body_leave_nothing(edge: EdgeServicesRig) -> None:
    await refused("digest_mismatch", edge.assets.put("ann", body(b"other"), DIGEST, "x", "y"))
    await refused("body_too_large", edge.assets.put("ann", body(b"x" * (1 << 21)), None, "x", "y"))
    assert (await edge.assets.list("ann")).assets == ()


async def test_owners_do_not_see_each_others(edge: EdgeServicesRig) -> None:
    await edge.put("ann", BODY)
    await refused("not_found", edge.assets.get("bob", DIGEST))
    await refused("not_found", edge.assets.delete("bob", DIGEST))
    await refused("not_found", edge.assets.get("ann", "../../etc/passwd"))
    assert await edge.assets.split_present("bob", [DIGEST]) == ((), (DIGEST,))
    assert await edge.assets.find_missing("bob", [DIGEST]) == (DIGEST,)
    assert (await edge.assets.get("ann", DIGEST))[1].bytes == 6


async def test_bytes_stay_while_another_owner_has_them(edge: EdgeServicesRig) -> None:
    await edge.put("ann", BODY)
    await edge.put("bob", BODY)
    await edge.announce_capabilities()
    assert (await edge.assets.delete("ann", DIGEST)).hosts_pending == ()
    assert await edge.store.stat(DIGEST)
    assert (await edge.assets.delete("bob", DIGEST)).hosts_pending == ("gpu-1",)
    assert await edge.store.stat(DIGEST) is None
    assert await edge.bus.tombstones.get(DIGEST)


async def test_what_a_living_job_needs_is_kept(edge: EdgeServicesRig) -> None:
    await edge.put("ann", BODY)
    accepted = await edge.jobs.submit("ann", {"endpoint": "echo", "input": {"file": f"sha256:{DIGEST}"}})
    job = accepted.entry.record.job
    error = await refused("asset_in_use", edge.assets.delete("ann", DIGEST))
    assert job.id in error.detail
    await edge.jobs.cancel(job.key)
    await edge.wait_until_indexed()
    await edge.assets.delete("ann", DIGEST)
    await refused("asset_missing", edge.jobs.retry(job.key))


async def test_the_trash_keeps_bytes_for_a_minute(edge: EdgeServicesRig) -> None:
    await edge.put("ann", BODY)
    await edge.assets.delete("ann", DIGEST)
    edge.time.advance(seconds=59)
    assert await edge.assets.sweep_trash() == 0
    edge.time.advance(seconds=1)
    assert await edge.assets.sweep_trash() == 1
    assert not await edge.store.restore(DIGEST)


async def test_bytes_named_again_come_back(edge: EdgeServicesRig) -> None:
    await edge.put("ann", BODY)
    await edge.assets.delete("ann", DIGEST)
    await edge.put("ann", BODY)
    assert await edge.bus.tombstones.get(DIGEST) is None
    await edge.store.trash(DIGEST)  # as a deletion that another edge started before
    assert await edge.assets.sweep_trash() == 1
    assert await edge.store.stat(DIGEST)


async def test_an_edge_that_died_between_trash_and_tombstone_is_followed_up(edge: EdgeServicesRig) -> None:
    await edge.put("ann", BODY)
    await edge.bus.asset_references.delete(f"ann.{DIGEST}")
    await edge.store.trash(DIGEST)
    assert await edge.assets.sweep_trash() == 0
    edge.time.advance(seconds=61)
    assert await edge.assets.sweep_trash() == 1


async def test_a_submit_touches_what_it_names(edge: EdgeServicesRig) -> None:
    await edge.put("ann", BODY)
    edge.time.advance(hours=2)
    await edge.jobs.submit("ann", {"endpoint": "echo", "input": {"file": f"sha256:{DIGEST}"}})
    reference, _ = await edge.assets.get("ann", DIGEST)
    assert (edge.time.now - reference.last_used_at).total_seconds() < 1


async def test_lists_come_in_pages_newest_first(edge: EdgeServicesRig) -> None:
    digests = [await edge.put("ann", str(number).encode()) for number in range(5)]
    first = await edge.assets.list("ann", limit=3)
    second = await edge.assets.list("ann", limit=3, cursor=first.next_cursor)
    assert [row.sha256 for row in (*first.assets, *second.assets)] == digests[::-1]
    assert second.next_cursor is None
