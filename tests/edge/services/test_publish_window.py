"""The publish window: JOBS has at most one window of jobs of each owner."""

from datetime import timedelta
from pathlib import Path

import anyio
import pytest

from bus.interface import BrokerUnreachable
from schemas import events as e
from schemas.job import Job
from schemas.status import Priority
from tests.support.edge_services import EdgeServicesRig, FakeBusServicesRig, fake_bus_services
from tests.support.wait import wait_for


async def submit_many(edge: EdgeServicesRig, owner: str, count: int, **fields: str) -> list[Job]:
    return [await edge.submit(owner, f"{owner} {number}", **fields) for number in range(count)]


async def test_eight_of_an_owner_stand_in_the_queue(edge: EdgeServicesRig) -> None:
    jobs = await submit_many(edge, "ann", 12)
    assert await edge.list_pointers() == sorted(job.id for job in jobs[:8])


async def test_four_to_a_slot_when_there_are_many_slots(edge: EdgeServicesRig) -> None:
    await edge.announce_capabilities(slots=3)
    await submit_many(edge, "ann", 15)
    assert len(await edge.list_pointers()) == 12


async def test_each_priority_and_owner_has_a_window_of_its_own(edge: EdgeServicesRig) -> None:
    for owner in ("ann", "bob"):
        for priority in Priority:
            await submit_many(edge, owner, 9, priority=priority)
    assert len(await edge.list_pointers()) == 2 * 3 * 8


async def test_one_that_ends_lets_the_next_one_up_at_once(edge: EdgeServicesRig) -> None:
    jobs = await submit_many(edge, "ann", 10)
    await edge.finish(jobs[0])

    async def moved_up() -> bool:
        return await edge.list_pointers() == sorted(job.id for job in jobs[1:9])

    await wait_for(moved_up)


async def test_a_thousand_of_one_owner_do_not_stand_before_another(edge: EdgeServicesRig) -> None:
    await submit_many(edge, "ann", 1000)
    job = await edge.submit("bob")
    await edge.wait_until_indexed()
    assert edge.index.queue_position(job, edge.publish_window.window_size("echo")) == 8
    assert job.id in await edge.list_pointers("bob")
    taken = [await edge.runner_bus.job_queue.fetch("echo", Priority.NORMAL) for _ in range(9)]
    assert [delivery.pointer.owner for delivery in taken if delivery] == ["ann"] * 8 + ["bob"]


async def test_a_job_that_waits_out_a_back_off_does_not_count(edge: EdgeServicesRig) -> None:
    jobs = await submit_many(edge, "ann", 9)
    await edge.start(jobs[0])
    assert jobs[8].id not in await edge.list_pointers()
    later = edge.time() + timedelta(minutes=5)
    await edge.write_event(jobs[0].key, e.AttemptReleased("internal", charged=True, not_before=later))

    async def nine() -> bool:
        return len(await edge.list_pointers()) == 9

    await wait_for(nine)
    assert edge.publish_window.contains((await edge.read(jobs[0])).pointer)


async def test_submits_at_once_do_not_overfill_it(edge: EdgeServicesRig) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(30):
            tasks.start_soon(edge.submit, "ann", str(number))
    assert len(await edge.list_pointers()) == 8


async def test_a_failed_publish_leaves_its_place_free(edge: EdgeServicesRig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object, **__: object) -> None:
        raise BrokerUnreachable

    with monkeypatch.context() as patch:
        patch.setattr(edge.bus.job_queue, "publish", away)
        lost = await edge.submit("ann", "lost")
    assert not edge.publish_window.contains(lost.pointer)
    await submit_many(edge, "ann", 8)
    assert len(await edge.list_pointers()) == 8


async def test_a_new_edge_takes_over_what_stands_there(fake: FakeBusServicesRig, tmp_path: Path) -> None:
    jobs = await submit_many(fake, "ann", 12)
    async with fake_bus_services(tmp_path / "second", fake.broker, fake.time) as second:
        assert second.publish_window.contains(jobs[0].pointer)
        assert not second.publish_window.contains(jobs[11].pointer)
        assert len(await second.list_pointers()) == 8
        await second.finish(jobs[0])

        async def eight() -> bool:
            return len(await second.list_pointers()) == 8

        await wait_for(eight)
