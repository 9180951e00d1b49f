"""Assets: references, bytes and tombstones."""

import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from edge.assets.service import ASSET_LIMIT_BYTES, AssetDeletion, AssetService
from edge.owners.quotas import OwnerQuotaOverride
from schemas.problems import ProblemError
from tests.support.edge_services import EdgeServicesRig, FakeBusServicesRig

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


async def test_a_named_digest_is_free_only_for_an_asset_that_the_owner_has(fake: FakeBusServicesRig) -> None:
    fake.limits["ann"] = OwnerQuotaOverride(bytes=len(BODY) - 1)
    await refused("quota_exceeded", fake.assets.put("ann", body(), DIGEST, "x", "y"))
    fake.limits["ann"] = OwnerQuotaOverride(bytes=len(BODY))
    await fake.assets.put("ann", body(), DIGEST, "x", "y")
    assert await fake.quotas.bytes_left("ann") == 0, "it is counted at once, before the bytes are read again"
    assert not (await fake.assets.put("ann", body(), DIGEST, "x", "y"))[2]
    assert await fake.quotas.bytes_left("ann") == 0
    await refused("quota_exceeded", fake.assets.put("ann", body(b"more"), None, "x", "y"))


async def test_a_service_without_quotas_stores_too(fake: FakeBusServicesRig) -> None:
    plain = AssetService(fake.bus, fake.store, fake.index, fake.time, 1 << 20)
    assert (await plain.put("ann", body(), None, "x", "y"))[1:] == (DIGEST, True)
    assert (await plain.delete("ann", DIGEST)).sha256 == DIGEST


async def test_a_file_that_is_imported_is_told_like_a_body(fake: FakeBusServicesRig, tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    fake.assets.subscribe_uploads(lambda owner, sha256: told.append((owner, sha256)))
    (tmp_path / "film").write_bytes(BODY)
    reference, sha256, created = await fake.assets.import_file("ann", tmp_path / "film", DIGEST, "a.mp4", "video/mp4")
    assert (reference.name, reference.bytes, sha256, created) == ("a.mp4", len(BODY), DIGEST, True)
    assert (tmp_path / "film").exists()
    await fake.put("bob", BODY)
    assert told == [("ann", DIGEST), ("bob", DIGEST)]


async def test_an_upload_of_what_is_there_counts_as_a_use(fake: FakeBusServicesRig) -> None:
    await fake.put("ann", BODY)
    fake.time.advance(hours=3)
    await fake.put("ann", BODY)
    used = (await fake.assets.get("ann", DIGEST))[0].last_used_at
    assert fake.time.now - used < timedelta(minutes=1)


async def test_an_asset_is_there_if_its_reference_and_its_bytes_are(fake: FakeBusServicesRig) -> None:
    await fake.put("ann", BODY)
    await refused("not_found", fake.assets.get("bob", DIGEST))
    await fake.store.trash(DIGEST)
    await refused("not_found", fake.assets.get("ann", DIGEST))


async def test_a_page_has_at_least_one_asset_and_at_most_the_limit(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.assets.service.PAGE_LIMIT", 2)
    for number in range(3):
        await fake.put("ann", b"%d" % number)
    sizes = [len((await fake.assets.list("ann", limit)).assets) for limit in (-1, 0, 1, 2, 3)]
    assert sizes == [1, 1, 1, 2, 2]


async def test_a_deletion_knows_the_jobs_that_this_edge_has_just_accepted(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fake.put("ann", BODY)
    find, is_current = fake.index.find_unfinished_jobs_with_asset, []

    async def wait(owner: str) -> bool:
        is_current.append(owner)
        return True

    async def find_if_current(owner: str | None, sha256: str) -> Any:
        return await find(owner, sha256) if is_current else []

    monkeypatch.setattr(fake.index, "wait_for_own_writes", wait)
    monkeypatch.setattr(fake.index, "find_unfinished_jobs_with_asset", find_if_current)
    for number in range(4):
        await fake.jobs.submit("ann", {"endpoint": "echo", "input": {"file": f"sha256:{DIGEST}"}}, job_id=f"j{number}")
    await fake.wait_until_indexed()
    error = await refused("asset_in_use", fake.assets.delete("ann", DIGEST))
    assert is_current == ["ann"]
    assert error.detail.startswith("4 job(s)")
    assert sum(f"j{number}" in error.detail for number in range(4)) == 3


async def test_an_unnamed_asset_is_dropped_a_day_after_its_last_use(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fake.put("ann", BODY)
    used = (await fake.assets.get("ann", DIGEST))[0].last_used_at
    for after, dropped in ((timedelta(hours=24) - timedelta(microseconds=1), []), (timedelta(hours=24), [DIGEST])):
        monkeypatch.setattr(fake.assets, "_clock", lambda after=after: used + after)
        assert await fake.assets.drop_unreferenced("ann", [DIGEST], only_unused=True) == dropped


async def test_bytes_that_somebody_names_while_they_are_deleted_stay(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fake.put("ann", BODY)
    await fake.announce_capabilities()
    trash = fake.store.trash
    reference = (await fake.assets.get("ann", DIGEST))[0]

    async def trash_late(sha256: str) -> None:
        await fake.bus.asset_references.create(f"bob.{sha256}", reference)
        await trash(sha256)

    monkeypatch.setattr(fake.store, "trash", trash_late)
    assert await fake.assets.delete("ann", DIGEST) == AssetDeletion(DIGEST, ())
    assert (await fake.assets.get("bob", DIGEST))[1].bytes == len(BODY)
    assert await fake.bus.tombstones.get(DIGEST) is None


def test_the_limit_is_as_the_pages_say() -> None:
    assert ASSET_LIMIT_BYTES == 20 * 2**30
