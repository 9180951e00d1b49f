"""Quotas of one owner, which must not affect other owners."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from edge.assets.uploads import UploadChunk, UploadParameters
from edge.owners.quotas import OwnerQuotaOverride, RequestLimiter, StreamLimiter
from edge.store.unfinished_uploads import UploadKey
from schemas import events as e
from schemas.credentials import ApiKey, Scope
from schemas.job import Job, Priority, Status, WaitReason
from schemas.problems import ProblemError
from tests.support.edge_services import START, EdgeServicesRig, FakeBusServicesRig, fake_bus_services, run_services
from tests.support.wait import wait_for


def limited(edge: EdgeServicesRig, **limits: int) -> None:
    """Set the quotas of ann."""
    edge.limits["ann"] = OwnerQuotaOverride(**limits)


async def refused(coroutine: Any) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        await coroutine
    return caught.value


async def body(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 10):
        yield data[at : at + 10]


async def put(edge: EdgeServicesRig, data: bytes, expected: str | None = None, **named: bool) -> str:
    return (await edge.assets.put("ann", body(data), expected, "x", "video/mp4", **named))[1]


async def test_no_more_wait_than_may(edge: EdgeServicesRig) -> None:
    limited(edge, waiting=3)
    first = await edge.submit(job_id="first")
    for _ in range(2):
        await edge.submit()
    error = await refused(edge.submit())
    assert (error.code, error.problem.status, error.retry_after_s) == ("quota_exceeded", 429, 10)
    assert (await edge.submit(job_id="first")).id == first.id, "what was accepted is answered for ever"
    await edge.submit("bob")
    await edge.jobs.cancel(first.key)
    await edge.wait_until_indexed()
    await edge.submit()
    assert (await refused(edge.jobs.retry(first.key))).code == "quota_exceeded"


async def test_submits_at_once_do_not_pass_the_quota(edge: EdgeServicesRig) -> None:
    limited(edge, waiting=5)
    made: list[Job] = []
    refusals: list[str] = []

    async def submit(number: int) -> None:
        try:
            made.append(await edge.submit(text=str(number)))
        except ProblemError as refusal:
            refusals.append(refusal.code)

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(submit, number)
    assert len(made) == 5
    assert refusals == ["quota_exceeded"] * 15
    assert len(await edge.bus.job_store.keys()) == 5


async def test_one_that_was_not_accepted_takes_no_place(fake: FakeBusServicesRig) -> None:
    limited(fake, waiting=1)
    for _ in range(3):
        assert (await refused(fake.submit(deadline=START.isoformat()))).code == "input_invalid"
    await fake.submit()


async def test_a_scheduled_job_waits_too_and_one_that_runs_does_not(fake: FakeBusServicesRig) -> None:
    limited(fake, waiting=2)
    await fake.submit(not_before="2027-01-01T00:00:00Z")
    running = await fake.submit()
    assert (await refused(fake.submit())).code == "quota_exceeded"
    await fake.start(running)
    await fake.submit()


async def test_submits_come_back_by_the_minute(fake: FakeBusServicesRig) -> None:
    limited(fake, submits_per_minute=6)
    for _ in range(6):
        await fake.submit()
    error = await refused(fake.submit())
    assert (error.code, error.retry_after_s) == ("rate_limited", 10)
    await fake.submit("bob")
    fake.time.advance(seconds=10)
    await fake.submit()
    assert (await refused(fake.submit())).code == "rate_limited"


async def test_submits_at_another_edge_count(fake: FakeBusServicesRig, tmp_path: Path) -> None:
    limited(fake, submits_per_minute=6)
    async with fake_bus_services(tmp_path / "second", fake.broker, fake.time) as second:
        limited(second, submits_per_minute=6)
        for number, edge in enumerate((fake, second) * 3):
            await edge.submit(job_id=f"job-{number}")  # the ids that both would make are the same
        for edge in (fake, second):
            await edge.wait_until_indexed()
            assert (await refused(edge.submit(job_id="more"))).code == "rate_limited"
        fake.time.advance(seconds=10)
        await second.submit(job_id="more")
        await fake.wait_until_indexed()
        assert (await refused(fake.submit(job_id="most"))).code == "rate_limited"
    third = FakeBusServicesRig(tmp_path / "third", fake.broker, fake.time)
    limited(third, submits_per_minute=6)
    async with run_services(third):
        await third.wait_until_indexed()
        await third.submit(job_id="most")  # what was accepted before its start does not count


async def test_an_id_counts_again_at_another_edge_once_it_is_free(fake: FakeBusServicesRig, tmp_path: Path) -> None:
    limited(fake, submits_per_minute=4)
    assert (await refused(fake.submit(job_id="refused", deadline=START.isoformat()))).code == "input_invalid"
    deleted = await fake.submit(job_id="deleted")
    await fake.wait_until_indexed()
    await fake.jobs.cancel(deleted.key)
    await fake.jobs.delete(deleted.key)
    async with fake_bus_services(tmp_path / "second", fake.broker, fake.time) as second:
        for job_id in ("refused", "deleted"):
            await second.submit(job_id=job_id)
        await fake.wait_until_indexed()
    assert (await refused(fake.submit(job_id="more"))).code == "rate_limited"


async def test_a_replay_is_answered_however_many_there_were(fake: FakeBusServicesRig) -> None:
    limited(fake, submits_per_minute=1, waiting=1)
    job = await fake.submit(idempotency_key="k")
    for _ in range(5):
        assert (await fake.submit(idempotency_key="k")).id == job.id


async def test_only_so_many_are_handed_to_hosts(edge: EdgeServicesRig) -> None:
    limited(edge, running=3)
    await edge.announce_capabilities(slots=10)
    jobs = [await edge.submit(text=str(number)) for number in range(6)]
    high = await edge.submit(text="high", priority="high")
    low = await edge.submit(text="low", priority="low")
    await edge.submit("bob")
    assert await edge.list_pointers("ann") == sorted(job.id for job in jobs[:3])
    assert len(await edge.list_pointers("bob")) == 1
    await edge.send_heartbeat()
    assert (await edge.reason(jobs[3]), await edge.reason(jobs[0])) == (WaitReason.QUOTA, WaitReason.BEHIND)
    await edge.finish(jobs[0])

    async def next_one() -> bool:
        return await edge.list_pointers("ann") == sorted([jobs[1].id, jobs[2].id, high.id])

    await wait_for(next_one)
    assert low.id not in await edge.list_pointers("ann")


async def test_jobs_in_back_off_keep_their_place_among_those_that_may_run(fake: FakeBusServicesRig) -> None:
    limited(fake, running=1)
    first, second = await fake.submit(text="1"), await fake.submit(text="2")
    await fake.start(first)
    later = fake.time.now.replace(hour=23)
    await fake.write_event(first.key, e.AttemptReleased("internal", charged=True, not_before=later))
    assert await fake.list_pointers() == [first.id]
    await fake.jobs.cancel(first.key)

    async def moved_up() -> bool:
        return await fake.list_pointers() == [second.id]

    await wait_for(moved_up)


async def test_what_another_edge_handed_out_counts_once_it_runs(fake: FakeBusServicesRig, tmp_path: Path) -> None:
    limited(fake, running=1)
    async with fake_bus_services(tmp_path / "second", fake.broker, fake.time) as second:
        limited(second, running=1)
        job = await second.submit()
        await second.start(job)
        await fake.wait_until_indexed()
        later = await fake.submit(text="later")
        assert not fake.publish_window.contains(later.pointer)
        assert (await fake.read(later)).status is Status.QUEUED


async def test_bytes_are_counted_over_all_ways_in(fake: FakeBusServicesRig) -> None:
    limited(fake, bytes=100)
    first = await put(fake, b"a" * 60)
    error = await refused(put(fake, b"b" * 41))
    assert (error.code, error.retry_after_s) == ("quota_exceeded", 60)
    await put(fake, b"a" * 60, first)
    upload = await fake.uploads.create("ann", UploadParameters(name="x", media_type="video/mp4", length=30))
    wanted = UploadParameters(name="x", media_type="video/mp4", length=11)
    assert (await refused(fake.uploads.create("ann", wanted))).code == "quota_exceeded"
    assert (await refused(put(fake, b"c" * 11))).code == "quota_exceeded"
    done = await fake.uploads.append("ann", upload.id, UploadChunk(offset=0, chunks=body(b"d" * 30)))
    assert done.is_stored
    await put(fake, b"e" * 10)
    assert (await refused(put(fake, b"f"))).code == "quota_exceeded"
    await fake.assets.delete("ann", first)
    await put(fake, b"g" * 60)
    await fake.put("bob", b"h" * 500)


async def test_an_upload_of_unknown_length_is_counted_as_it_comes_and_once(fake: FakeBusServicesRig) -> None:
    limited(fake, bytes=100)
    wanted = UploadParameters(name="x", media_type="video/mp4")
    upload = await fake.uploads.create("ann", wanted)
    came = await fake.uploads.append("ann", upload.id, UploadChunk(offset=0, chunks=body(b"a" * 70)))
    assert came.offset == 70
    other = await fake.uploads.create("ann", wanted)
    error = await refused(fake.uploads.append("ann", other.id, UploadChunk(offset=0, chunks=body(b"b" * 31))))
    assert (error.code, "30 bytes are left" in error.detail) == ("quota_exceeded", True)
    too_long = UploadChunk(offset=70, chunks=body(b"a" * 31), length=101)
    assert (await refused(fake.uploads.append("ann", upload.id, too_long))).code == "quota_exceeded"
    done = await fake.uploads.append("ann", upload.id, UploadChunk(offset=70, chunks=body(b"a" * 30), length=100))
    assert done.is_stored


async def test_a_result_is_never_refused(fake: FakeBusServicesRig) -> None:
    limited(fake, bytes=10)
    await put(fake, b"r" * 500, result=True)
    assert (await refused(put(fake, b"x"))).code == "quota_exceeded"


async def test_what_is_refused_leaves_nothing(fake: FakeBusServicesRig) -> None:
    limited(fake, bytes=50)
    data = b"n" * 60
    assert (await refused(put(fake, data))).code == "quota_exceeded"
    assert await fake.store.stat(hashlib.sha256(data).hexdigest()) is None
    assert (await fake.assets.list("ann")).assets == ()


async def test_what_another_edge_took_in_is_seen_after_half_a_minute(fake: FakeBusServicesRig, tmp_path: Path) -> None:
    limited(fake, bytes=100)
    fake.time.advance(hours=1)
    await put(fake, b"a" * 50)
    async with fake_bus_services(tmp_path / "second", fake.broker, fake.time) as second:
        await second.put("ann", b"b" * 50)
    fake.time.advance(seconds=29)
    await put(fake, b"c" * 10)
    fake.time.advance(seconds=2)
    assert (await refused(put(fake, b"d"))).code == "quota_exceeded"


async def test_what_is_left_out_for_an_owner_is_as_for_everybody(fake: FakeBusServicesRig) -> None:
    limited(fake, running=7)
    assert fake.quotas.for_owner("ann") == fake.quotas.for_owner("bob").__class__(running=7)
    assert fake.quotas.for_owner("bob").running == 0


async def test_a_thousand_of_one_owner_start_at_most_a_window_ahead_of_another(edge: EdgeServicesRig) -> None:
    """Counted by starts and ends in STATE, with a runner that runs published jobs one at a time."""
    for number in range(1000):
        await edge.submit("ann", str(number))
    bobs = await edge.submit("bob")
    started: list[str] = []
    while "bob" not in started:
        delivery = await edge.runner_bus.job_queue.fetch("echo", Priority.NORMAL, wait_s=1.0)
        assert delivery is not None
        entry = await edge.runner_bus.job_store.read(delivery.pointer.key)
        assert entry is not None
        started.append(delivery.pointer.owner)
        await edge.finish_running(await edge.start(entry.record.job))
    entries = [await edge.bus.job_store.read(key) for key in await edge.bus.job_store.keys()]
    since = (await edge.read(bobs)).started_at
    assert since is not None
    before = [e for e in entries if e and e.record.job.started_at and e.record.job.started_at < since]
    assert len(before) == started.count("ann") <= edge.publish_window.window_size("echo")


async def test_an_hour_of_rest_earns_no_more_than_a_minute_of_submits(fake: FakeBusServicesRig) -> None:
    limited(fake, submits_per_minute=6)
    await fake.submit()
    fake.time.advance(hours=1)
    for _ in range(6):
        await fake.submit()
    assert (await refused(fake.submit())).code == "rate_limited"


async def test_a_retry_is_not_a_submit(fake: FakeBusServicesRig) -> None:
    limited(fake, submits_per_minute=1)
    job = await fake.submit()
    await fake.jobs.cancel(job.key)
    await fake.jobs.retry(job.key)
    assert (await refused(fake.submit())).code == "rate_limited"


async def test_waiting_jobs_are_not_counted_by_an_index_that_is_behind(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(fake.index), "is_caught_up", False)
    await fake.submit()
    limited(fake, waiting=9)
    error = await refused(fake.submit())
    assert (error.code, error.retry_after_s) == ("unavailable", 10)


async def test_an_owner_that_is_being_deleted_sends_and_submits_nothing(fake: FakeBusServicesRig) -> None:
    fake.quotas.mark_deleting("ann")
    for coroutine in (fake.submit(), put(fake, b"file"), fake.quotas.bytes_left("ann")):
        assert (await refused(coroutine)).code == "owner_deleting"
    await fake.submit("bob")
    fake.quotas.unmark_deleting("ann")
    await fake.submit()
    fake.quotas.set_deleting({"ann"})
    assert (await refused(fake.submit())).code == "owner_deleting"
    fake.quotas.set_deleting(())
    await fake.submit()


async def test_a_body_of_unknown_size_reserves_nothing_ahead_of_its_first_byte(fake: FakeBusServicesRig) -> None:
    limited(fake, bytes=100)
    async with fake.quotas.reserve("ann", None) as reservation:
        assert reservation is not None
        assert (reservation.reserved, await fake.quotas.bytes_left("ann")) == (0, 100)
    async with fake.quotas.reserve("ann", 40):
        assert await fake.quotas.bytes_left("ann") == 60
    assert await fake.quotas.bytes_left("ann") == 100


@pytest.mark.parametrize(("room", "ahead"), [(80, 10), (8 << 20, 1 << 20), (80 << 20, 1 << 20)])
async def test_a_body_of_unknown_size_reserves_a_mebibyte_or_an_eighth_of_what_is_left(
    fake: FakeBusServicesRig, room: int, ahead: int
) -> None:
    limited(fake, bytes=room)
    async with fake.quotas.reserve("ann", None) as reservation:
        assert reservation is not None
        for size in (1, ahead - 1):
            await reservation.use(size)
            assert (reservation.reserved, await fake.quotas.bytes_left("ann")) == (ahead, room - ahead)
        await reservation.use(room - ahead)
        assert await fake.quotas.bytes_left("ann") == 0
        assert (await refused(reservation.use(1))).detail.startswith(f"{room} bytes are left")
    assert await fake.quotas.bytes_left("ann") == room


async def test_a_body_of_the_reserved_size_reserves_no_more(fake: FakeBusServicesRig) -> None:
    limited(fake, bytes=100)
    async with fake.quotas.reserve("ann", 40) as reservation:
        assert reservation is not None
        await reservation.use(40)
        assert reservation.reserved == 40


async def test_what_an_upload_has_grown_counts_from_its_offset(fake: FakeBusServicesRig) -> None:
    limited(fake, bytes=100)
    offset = 10
    async with fake.quotas.reserve_growth(UploadKey("ann", "u1"), lambda: offset):
        offset = 25
    assert fake.quotas._grown == {"ann": 15}
    assert fake.quotas._growing == {}


def test_zero_requests_a_minute_is_no_limit() -> None:
    key = ApiKey(id="a", owner="ann", scopes=(Scope.JOBS_READ,), secret_sha256="", created_at=START)
    assert RequestLimiter(0, lambda: 0.0).count(key) is None


def test_streams_are_limited_by_key_and_by_owner() -> None:
    limiter = StreamLimiter("streams", per_key=2, per_owner=3)
    keys = [
        ApiKey(id=name, owner="ann", scopes=(Scope.JOBS_READ,), secret_sha256="", created_at=START) for name in "ab"
    ]

    def is_refused(key: ApiKey) -> str:
        with pytest.raises(ProblemError) as caught, limiter.count_stream(key):
            pass
        assert (caught.value.code, caught.value.retry_after_s) == ("too_many_connections", 10)
        return caught.value.detail

    for _ in range(2):  # what was closed does not count
        with limiter.count_stream(keys[0]), limiter.count_stream(keys[0]):
            assert "2 streams of the key a" in is_refused(keys[0])
            with limiter.count_stream(keys[1]):
                assert "3 streams of ann" in is_refused(keys[1])
    assert (limiter._of_key, limiter._of_owner) == ({}, {})
