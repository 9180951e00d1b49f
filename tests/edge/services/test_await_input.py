"""`await_input`: a job waits for its files and is queued when the last one arrives."""

import hashlib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from edge.index.rows import JobFilters
from schemas import events as e
from schemas.job import Job, JobKey, Status, WaitReason
from schemas.problems import ProblemError
from tests.support.edge_services import START, EdgeServicesRig, FakeBusServicesRig, fake_bus_services
from tests.support.wait import wait_for

FILM, VOICE = b"a film", b"a voice"


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def request(*files: bytes, **more: Any) -> dict[str, Any]:
    named = dict(zip(("file", "second"), (f"sha256:{digest(body)}" for body in files), strict=False))
    return {"endpoint": "echo", "input": named, "await_input": True, **more}


async def awaiting(edge: EdgeServicesRig, *files: bytes, owner: str = "ann", **more: Any) -> Job:
    """Submit a job that waits for `files`, and wait until the index has it."""
    names: Mapping[str, Any] = {name: more.pop(name) for name in ("job_id", "idempotency_key") if name in more}
    accepted = await edge.jobs.submit(owner, request(*files, **more), **names)
    await edge.wait_until_indexed()
    return accepted.entry.record.job


async def became(edge: EdgeServicesRig, job: Job, status: Status) -> Job:
    async def there() -> bool:
        return (await edge.read(job)).status is status

    await wait_for(there)
    await edge.wait_until_indexed()
    return await edge.read(job)


async def test_a_job_waits_for_its_files_and_the_last_one_queues_it(edge: EdgeServicesRig) -> None:
    job = await awaiting(edge, FILM, VOICE)
    assert (job.status, job.missing, job.queued_at) == (Status.SCHEDULED, (digest(FILM), digest(VOICE)), None)
    view = await edge.job_views.build(await edge.jobs.read(job.key))
    assert (view.reason, view.missing) == (WaitReason.AWAITING_INPUT, tuple(f"sha256:{d}" for d in job.missing))
    assert await edge.list_pointers() == []
    await edge.put("ann", FILM)

    async def one_left() -> bool:
        return (await edge.read(job)).missing == (digest(VOICE),)

    await wait_for(one_left)
    await edge.put("ann", VOICE)
    queued = await became(edge, job, Status.QUEUED)
    assert (queued.missing, queued.round) == ((), 1)
    assert await edge.list_pointers() == [job.id]


async def test_the_file_of_another_owner_is_not_meant(edge: EdgeServicesRig) -> None:
    job = await awaiting(edge, FILM)
    await edge.put("bob", FILM)
    await edge.put("ann", VOICE)
    await edge.reconciler.sweep()
    assert (await edge.read(job)).status is Status.SCHEDULED


async def test_what_is_there_already_is_not_waited_for(edge: EdgeServicesRig) -> None:
    await edge.put("ann", FILM)
    assert (await awaiting(edge, FILM)).status is Status.QUEUED
    assert (await awaiting(edge, FILM, VOICE)).missing == (digest(VOICE),)


async def test_one_upload_queues_every_job_that_waits_for_it(edge: EdgeServicesRig) -> None:
    jobs = [await awaiting(edge, FILM) for _ in range(6)]
    await edge.put("ann", FILM)
    for job in jobs:
        await became(edge, job, Status.QUEUED)
    assert len(await edge.list_pointers()) == 6


async def test_an_upload_that_races_the_submit_is_not_lost(edge: EdgeServicesRig) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            body = b"file %d" % number
            tasks.start_soon(edge.put, "ann", body)
            tasks.start_soon(edge.jobs.submit, "ann", request(body))

    async def nobody_waits() -> bool:
        page = await edge.index.list_jobs("ann", JobFilters(statuses=(Status.SCHEDULED,)))
        return not page.records

    await wait_for(nobody_waits)


async def test_a_job_for_later_waits_for_both_its_files_and_its_time(edge: EdgeServicesRig) -> None:
    job = await awaiting(edge, FILM, not_before=(START + timedelta(minutes=20)).isoformat())
    await edge.put("ann", FILM)

    async def complete() -> bool:
        return not (await edge.read(job)).missing

    await wait_for(complete)
    await edge.wait_until_indexed()
    await edge.reconciler.sweep()
    assert (await edge.read(job)).status is Status.SCHEDULED
    edge.time.advance(minutes=21)
    await edge.reconciler.sweep()
    assert (await edge.read(job)).status is Status.QUEUED


async def test_files_that_do_not_come_in_time_fail_the_job_and_a_retry_waits_for_them_again(
    edge: EdgeServicesRig,
) -> None:
    job = await awaiting(edge, FILM, policy={"input_timeout_s": 60})
    edge.time.advance(seconds=59)
    await edge.reconciler.sweep()
    assert (await edge.read(job)).status is Status.SCHEDULED
    edge.time.advance(seconds=2)
    await edge.reconciler.sweep()
    failed = await edge.read(job)
    assert failed.error is not None
    assert (failed.status, failed.error.code, failed.error.blame) == (Status.FAILED, "asset_gone", "client")
    assert digest(FILM) in failed.error.message
    again = (await edge.jobs.retry(job.key)).record.job
    assert (again.status, again.round, again.missing) == (Status.SCHEDULED, 2, (digest(FILM),))
    await edge.wait_until_indexed()
    await edge.reconciler.sweep()
    assert (await edge.read(job)).status is Status.SCHEDULED, "the time to upload begins anew"
    await edge.put("ann", FILM)
    await became(edge, job, Status.QUEUED)


async def test_a_retry_of_a_job_whose_file_came_meanwhile_is_queued(edge: EdgeServicesRig) -> None:
    job = await awaiting(edge, FILM)
    await edge.jobs.cancel(job.key)
    await edge.wait_until_indexed()
    await edge.put("ann", FILM)
    assert (await edge.read(job)).status is Status.CANCELLED
    await edge.jobs.retry(job.key)
    await became(edge, job, Status.QUEUED)


async def test_deadline_and_start_timeout_hold_while_it_waits(edge: EdgeServicesRig) -> None:
    late = await awaiting(edge, FILM, deadline=(START + timedelta(minutes=5)).isoformat())
    slow = await awaiting(edge, FILM, policy={"start_timeout_s": 300})
    edge.time.advance(minutes=6)
    await edge.reconciler.sweep()
    assert [(await edge.read(job)).status for job in (late, slow)] == [Status.EXPIRED] * 2


async def test_a_file_that_a_job_waits_with_is_not_deleted_under_it(edge: EdgeServicesRig) -> None:
    job = await awaiting(edge, FILM, VOICE)
    await edge.put("ann", FILM)
    with pytest.raises(ProblemError) as refused:
        await edge.assets.delete("ann", digest(FILM))
    assert (refused.value.code, job.id in refused.value.detail) == ("asset_in_use", True)


async def test_the_same_request_again_is_the_same_job_whatever_has_come_since(edge: EdgeServicesRig) -> None:
    job = await awaiting(edge, FILM, idempotency_key="k")
    assert (await awaiting(edge, FILM, idempotency_key="k")).id == job.id
    await edge.put("ann", FILM)
    await became(edge, job, Status.QUEUED)
    replayed = await edge.jobs.submit("ann", request(FILM), idempotency_key="k")
    assert (replayed.replayed, replayed.entry.record.job.status) == (True, Status.QUEUED)


async def test_history_tells_what_came_when(edge: EdgeServicesRig) -> None:
    job = await awaiting(edge, FILM)
    await edge.put("ann", FILM)
    await became(edge, job, Status.QUEUED)
    rows = await edge.jobs.read_history(job.key)
    assert [row.event["type"] for row in rows] == ["submitted", "supplied", "queued"]
    assert rows[1].event["sha256"] == digest(FILM)


async def test_an_upload_at_one_edge_queues_the_job_that_came_over_the_other(
    fake: FakeBusServicesRig, tmp_path: Path
) -> None:
    async with fake_bus_services(tmp_path / "second", fake.broker, fake.time) as second:
        job = await awaiting(fake, FILM)
        await second.wait_until_indexed()
        await second.put("ann", FILM)
        await became(fake, job, Status.QUEUED)


async def test_what_an_edge_left_when_it_died_the_other_makes_good(fake: FakeBusServicesRig) -> None:
    job = await awaiting(fake, FILM)
    dead = fake.broker.connect()
    await dead.asset_references.create(f"ann.{digest(FILM)}", await reference(fake))
    await fake.reconciler.sweep()
    assert (await fake.read(job)).status is Status.QUEUED


async def reference(fake: FakeBusServicesRig) -> Any:
    other = await fake.put("bob", FILM)
    return (await fake.assets.get("bob", other))[0]


async def test_an_edge_that_starts_goes_on_with_what_it_finds(fake: FakeBusServicesRig, tmp_path: Path) -> None:
    job = await awaiting(fake, FILM, VOICE)
    await fake.put("ann", FILM)
    await fake.bus.asset_references.create(f"ann.{digest(VOICE)}", await reference(fake))
    async with fake_bus_services(tmp_path / "second", fake.broker, fake.time):
        await became(fake, job, Status.QUEUED)


async def test_jobs_are_looked_at_once_each_and_in_the_order_in_which_they_came(
    fake: FakeBusServicesRig, monkeypatch
) -> None:
    jobs = [await awaiting(fake, FILM, VOICE) for _ in range(40)]
    await fake.wait_until_indexed()
    await anyio.wait_all_tasks_blocked()
    looked: list[JobKey] = []

    async def noted(key: JobKey) -> bool:
        looked.append(key)
        await anyio.lowlevel.checkpoint()
        return False

    monkeypatch.setattr(fake.input_waiter, "queue_if_complete", noted)
    for job in (*jobs, *jobs):
        fake.input_waiter._schedule_check(job.key)

    async def all_looked_at() -> bool:
        return len(looked) >= len(jobs) and not fake.input_waiter._scheduled_checks

    await wait_for(all_looked_at)
    assert looked == [job.key for job in jobs]


async def test_a_broker_that_is_away_leaves_it_to_the_sweep(fake: FakeBusServicesRig) -> None:
    job = await awaiting(fake, FILM)
    await fake.bus.asset_references.create(f"ann.{digest(FILM)}", await reference(fake))
    fake.bus.cut()
    fake.input_waiter._schedule_check(job.key)
    await anyio.wait_all_tasks_blocked()
    fake.bus.heal()
    assert (await fake.read(job)).status is Status.SCHEDULED
    await fake.reconciler.sweep()
    assert (await fake.read(job)).status is Status.QUEUED


async def test_a_job_that_brings_out_a_bug_keeps_no_other_from_its_files(fake: FakeBusServicesRig, monkeypatch) -> None:
    odd = await awaiting(fake, FILM)
    sound = await awaiting(fake, VOICE)
    settle = fake.input_waiter.queue_if_complete

    async def broken(key: JobKey) -> bool:
        if key == odd.key:
            raise KeyError("a bug of ours")
        return await settle(key)

    monkeypatch.setattr(fake.input_waiter, "queue_if_complete", broken)
    await fake.put("ann", FILM)
    await fake.put("ann", VOICE)
    await became(fake, sound, Status.QUEUED)
    assert (await fake.read(odd)).status is Status.SCHEDULED


async def test_events_the_job_lacks_are_never_written(fake: FakeBusServicesRig) -> None:
    job = await awaiting(fake, FILM)
    assert not await fake.input_waiter.queue_if_complete(job.key)
    kinds = [type(entry.record.event) for entry in await fake.bus.job_store.history(job.key)]
    assert kinds == [e.Submitted]
