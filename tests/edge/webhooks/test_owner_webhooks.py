"""Owner-wide webhooks: filtered, sent once after a crash of the edge, with two edges, and until they are deleted."""

from pathlib import Path
from typing import Any

import anyio
import pytest

from edge.core.clock import utc_now
from schemas.job import Job, Status
from schemas.problems import ProblemError
from schemas.webhook import OWNER_WEBHOOK_LIMIT, DeliveryState
from tests.edge.webhooks.test_dispatcher import hooked, rows, tried
from tests.support.edge_services import EdgeServicesRig, FakeBusServicesRig, fake_bus_services
from tests.support.wait import wait_for
from tests.support.webhook_receiver import run_receiver, statuses_in_order

LEASE_S = 61  # after this time a state that an edge took and did not acknowledge goes to another edge


async def ended(edge: EdgeServicesRig) -> Job:
    job = await edge.submit()
    await edge.finish(job)
    return job


async def test_a_final_state_is_delivered_once_beside_those_of_the_job(edge: EdgeServicesRig) -> None:
    edge.time.now = utc_now()  # the verifier uses the clock
    async with run_receiver() as own, run_receiver() as wide:
        webhook = (await edge.webhooks.owner_webhooks.add("ann", wide.url)).webhook
        job = await hooked(edge, own.url)
        await edge.finish(job)
        told = await rows(edge, job, *[DeliveryState.DELIVERED] * 4)
        assert [(row.webhook, row.status) for row in told if row.webhook] == [(webhook.id, Status.SUCCEEDED)]
        (got,) = wide.got
        assert got.id == f"{job.id}.{told[-1].revision}.{webhook.id}"
        secret = (await edge.webhooks.secrets.get("ann")).secret
        assert got.verified(secret)["data"]["status"] == "succeeded"
        assert got.id not in {one.id for one in own.got}
        await rows(edge, await hooked(edge, own.url, "bob"), DeliveryState.DELIVERED)
        assert len(wide.got) == 1


async def test_the_filter_chooses_endpoints_and_states(fake: FakeBusServicesRig) -> None:
    store = fake.webhooks.owner_webhooks
    urls = {name: f"http://files.test/{name}" for name in ("all", "failed", "ended", "other")}
    await store.add("ann", urls["all"])
    await store.add("ann", urls["failed"], states=(Status.FAILED,))
    await store.add("ann", urls["ended"], ("other", "echo"), (Status.CANCELLED, Status.SUCCEEDED))
    await store.add("ann", urls["other"], ("other",))
    job = await fake.submit()
    await fake.jobs.cancel(job.key)

    async def enqueued() -> bool:
        return len(await fake.webhooks.delivery_log.list_for_job(job.key)) == 2

    await wait_for(enqueued)
    wanted = {row.url for row in await fake.webhooks.delivery_log.list_for_job(job.key)}
    assert wanted == {urls["all"], urls["ended"]}


async def test_each_round_is_delivered(fake: FakeBusServicesRig) -> None:
    async with run_receiver() as receiver:
        await fake.webhooks.owner_webhooks.add("ann", receiver.url)
        job = await fake.submit()
        await fake.jobs.cancel(job.key)
        await rows(fake, job, DeliveryState.DELIVERED)
        await fake.jobs.retry(job.key)
        await fake.jobs.cancel(job.key)
        await rows(fake, job, *[DeliveryState.DELIVERED] * 2)
        assert [(got.job["status"], got.job["round"]) for got in receiver.got] == [("cancelled", 1), ("cancelled", 2)]


def stop_at(edge: EdgeServicesRig, point: str, reached: anyio.Event) -> None:
    """Let `edge` go no further than `point` of the way from a final state to the outbox."""
    log: Any = edge.bus.delivery_log
    outbox: Any = edge.bus.webhook_outbox
    enqueue = outbox.enqueue

    async def stop(*_: Any) -> None:
        reached.set()
        await anyio.sleep_forever()

    async def enqueue_and_stop(delivery: Any) -> None:
        await enqueue(delivery)
        await stop()

    if point == "before the row":
        log.create = stop
    else:
        outbox.enqueue = stop if point == "before the outbox" else enqueue_and_stop


@pytest.mark.parametrize("point", ["before the row", "before the outbox", "before the acknowledgement"])
async def test_an_edge_that_dies_on_the_way_to_the_outbox_neither_loses_nor_doubles_a_delivery(
    fake: FakeBusServicesRig, tmp_path: Path, point: str
) -> None:
    reached = anyio.Event()
    async with run_receiver() as first, run_receiver() as second:
        for receiver in (first, second):
            await fake.webhooks.owner_webhooks.add("ann", receiver.url)
        stop_at(fake, point, reached)
        job = await ended(fake)
        await reached.wait()
        async with fake_bus_services(tmp_path / "other", fake.broker, fake.time) as other:
            fake.time.advance(seconds=LEASE_S)
            await rows(other, job, *[DeliveryState.DELIVERED] * 2)
            again = await ended(other)
            await rows(other, again, *[DeliveryState.DELIVERED] * 2)
        assert [len(receiver.got) for receiver in (first, second)] == [2, 2]


async def test_two_edges_send_one(fake: FakeBusServicesRig, tmp_path: Path) -> None:
    async with fake_bus_services(tmp_path / "second", fake.broker, fake.time) as second, run_receiver() as receiver:
        await second.webhooks.owner_webhooks.add("ann", receiver.url)
        jobs = [await ended(edge) for edge in (fake, second) for _ in range(3)]
        for job in jobs:
            await rows(second, job, DeliveryState.DELIVERED)
        assert sorted(got.job["id"] for got in receiver.got) == sorted(job.id for job in jobs)


async def test_a_deleted_webhook_gets_nothing_more(fake: FakeBusServicesRig) -> None:
    async with run_receiver(statuses_in_order(500)) as receiver:
        webhook = (await fake.webhooks.owner_webhooks.add("ann", receiver.url)).webhook
        job = await ended(fake)
        row = await tried(fake, job, 1)
        assert await fake.webhooks.owner_webhooks.remove("ann", webhook.id) == webhook
        fake.time.advance(hours=1)
        await rows(fake, job, DeliveryState.DISABLED)
        with pytest.raises(ProblemError, match="conflict"):
            await fake.webhooks.delivery_log.replay("ann", row.id)
        assert len(receiver.got) == 1


async def test_a_replay_goes_to_the_same_webhook(fake: FakeBusServicesRig) -> None:
    async with run_receiver() as receiver, run_receiver() as other:
        for url in (receiver.url, other.url):
            await fake.webhooks.owner_webhooks.add("ann", url)
        found = await rows(fake, await ended(fake), *[DeliveryState.DELIVERED] * 2)
        row = next(one for one in found if one.url == receiver.url)
        await fake.webhooks.delivery_log.replay("ann", row.id)
        assert [got.id for got in await receiver.wait_for_deliveries(2)] == [row.id] * 2
        assert len(other.got) == 1


async def test_an_owner_has_a_bounded_number_also_when_many_are_added_at_once(edge: EdgeServicesRig) -> None:
    store, refused = edge.webhooks.owner_webhooks, []

    async def add(number: int) -> None:
        try:
            await store.add("ann", f"https://files.test/{number}")
        except ProblemError as problem:
            refused.append(problem.code)

    async with anyio.create_task_group() as tasks:
        for number in range(OWNER_WEBHOOK_LIMIT + 3):
            tasks.start_soon(add, number)
    kept = await store.list_webhooks("ann")
    assert (len(kept), refused) == (OWNER_WEBHOOK_LIMIT, ["quota_exceeded"] * 3)
    again = await store.add("ann", kept[0].url)
    assert (again.webhook, again.is_new) == (kept[0], False)
    assert (await store.add("bob", kept[0].url)).is_new


async def test_a_row_that_cannot_be_read_holds_up_no_other_owner(fake: FakeBusServicesRig) -> None:
    fake.broker.corrupt("$KV.OWNER_HOOKS.ann", b"nonsense")
    async with run_receiver() as receiver:
        await fake.webhooks.owner_webhooks.add("bob", receiver.url)
        unread = await ended(fake)
        job = await hooked(fake, receiver.url, "bob")
        await fake.jobs.cancel(job.key)
        await rows(fake, job, *[DeliveryState.DELIVERED] * 3)
        assert await fake.webhooks.delivery_log.list_for_job(unread.key) == []
