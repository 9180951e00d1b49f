"""Webhooks from state to receiver: signed, retried, logged, replayed, and sent once by two edges."""

import base64
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import WebhookVerificationError
from starlette.responses import Response

from bus.interface import BrokerFull
from edge.core.clock import utc_now
from edge.webhooks.dispatcher import RETRY_DELAYS_S
from schemas.job import Job
from schemas.problems import ProblemError
from schemas.webhook import DeliveryLogRow, DeliveryState
from tests.support.edge_services import EdgeServicesRig, FakeBusServicesRig, fake_bus_services
from tests.support.metric_samples import parse_samples, series_of
from tests.support.scripted_servers import scripted_server, stay_silent
from tests.support.wait import wait_for
from tests.support.webhook_receiver import run_receiver, statuses_in_order


async def hooked(edge: EdgeServicesRig, url: str, owner: str = "ann", **more: Any) -> Job:
    body = {"endpoint": "echo", "input": {"text": "hello"}, "webhook": {"url": url}}
    accepted = await edge.jobs.submit(owner, body, **more)
    await edge.publish_window.wait_until_idle()
    return accepted.entry.record.job


async def rows(edge: EdgeServicesRig, job: Job, *states: DeliveryState) -> list[DeliveryLogRow]:
    """Wait until the job's deliveries are in these states, and return them."""

    async def so() -> bool:
        return [row.state for row in await edge.webhooks.delivery_log.list_for_job(job.key)] == list(states)

    await wait_for(so)
    return list(await edge.webhooks.delivery_log.list_for_job(job.key))


async def tried(edge: EdgeServicesRig, job: Job, times: int) -> DeliveryLogRow:
    """Wait until the job's only delivery was attempted this often, and return it."""

    async def so() -> bool:
        return [len(row.attempts) for row in await edge.webhooks.delivery_log.list_for_job(job.key)] == [times]

    await wait_for(so)
    return (await edge.webhooks.delivery_log.list_for_job(job.key))[0]


async def test_every_state_is_delivered_and_its_signature_holds(edge: EdgeServicesRig) -> None:
    edge.time.now = utc_now()  # the verifier uses the clock
    async with run_receiver() as receiver:
        job = await hooked(edge, receiver.url)
        await edge.finish(job)
        await rows(edge, job, *[DeliveryState.DELIVERED] * 3)
        secret = (await edge.webhooks.secrets.get("ann")).secret
        told = sorted((got.job["revision"], got.verified(secret)["data"]["status"]) for got in receiver.got)
    assert [status for _, status in told] == ["queued", "running", "succeeded"]
    assert len({got.id for got in receiver.got}) == 3
    assert receiver.got[0].headers["content-type"] == "application/json"
    with pytest.raises(WebhookVerificationError):
        receiver.got[0].verified("whsec_" + base64.b64encode(b"x" * 24).decode())


async def test_a_job_without_a_webhook_leaves_nothing(edge: EdgeServicesRig) -> None:
    job = await edge.submit()
    async with run_receiver() as receiver:
        await rows(edge, await hooked(edge, receiver.url), DeliveryState.DELIVERED)
    assert await edge.webhooks.delivery_log.list_for_job(job.key) == []


async def test_retries_keep_their_id_and_their_times(fake: FakeBusServicesRig) -> None:
    async with run_receiver(statuses_in_order(500)) as receiver:
        job = await hooked(fake, receiver.url)
        for failed, pause in enumerate(RETRY_DELAYS_S, start=1):
            row = await tried(fake, job, failed)
            assert row.next_attempt_at is not None
            assert abs((row.next_attempt_at - row.attempts[-1].at).total_seconds() - pause) < 1
            fake.time.advance(seconds=pause + 1)
        (row,) = await rows(fake, job, DeliveryState.FAILED)
        assert [one.status for one in row.attempts] == [500] * 9
        assert row.next_attempt_at is None
        assert {got.id for got in receiver.got} == {row.id}
        assert len({got.body for got in receiver.got}) == 1 or len({got.job["revision"] for got in receiver.got}) == 1


async def test_what_is_delivered_at_last_is_not_sent_again(fake: FakeBusServicesRig) -> None:
    async with run_receiver(statuses_in_order(500, 302, 200)) as receiver:
        job = await hooked(fake, receiver.url)
        for failed in (1, 2):
            await tried(fake, job, failed)
            fake.time.advance(hours=1)
        (row,) = await rows(fake, job, DeliveryState.DELIVERED)
        assert [one.status for one in row.attempts] == [500, 302, 200]
        assert await fake.bus.webhook_outbox.fetch() is None


async def test_a_redirect_is_not_followed(fake: FakeBusServicesRig) -> None:
    async with run_receiver() as other, run_receiver(statuses_in_order(307, Location=other.url)) as receiver:
        await tried(fake, await hooked(fake, receiver.url), 1)
        assert other.got == []


@pytest.mark.parametrize(
    "headers",
    [{"Location": "http://xn--/"}, {"Location": "http://["}, {"Retry-After": f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT"}],
)
async def test_a_receiver_that_answers_nonsense_is_tried_again_and_harms_nobody(
    fake: FakeBusServicesRig, headers: dict[str, str]
) -> None:
    async with run_receiver(statuses_in_order(302, **headers)) as odd, run_receiver() as other:
        row = await tried(fake, await hooked(fake, odd.url), 1)
        await rows(fake, await hooked(fake, other.url), DeliveryState.DELIVERED)
    assert row.state is DeliveryState.PENDING


async def test_an_answer_that_we_cannot_take_is_a_try_like_any_other(fake: FakeBusServicesRig, monkeypatch) -> None:
    ask = fake.webhooks.dispatcher._sender._post

    async def once_odd(*_: Any) -> Any:
        monkeypatch.setattr(fake.webhooks.dispatcher._sender, "_post", ask)
        raise KeyError("a bug of ours")

    monkeypatch.setattr(fake.webhooks.dispatcher._sender, "_post", once_odd)
    async with run_receiver() as receiver:
        row = await tried(fake, await hooked(fake, receiver.url), 1)
        await rows(fake, await hooked(fake, receiver.url), DeliveryState.DELIVERED)
    assert (row.state, row.attempts[0].error) == (DeliveryState.PENDING, "KeyError: 'a bug of ours'")


async def test_a_receiver_that_asks_for_time_gets_it(fake: FakeBusServicesRig) -> None:
    async with run_receiver(statuses_in_order(429, Retry_After="600")) as receiver:
        row = await tried(fake, await hooked(fake, receiver.url), 1)
    assert row.next_attempt_at is not None
    assert row.next_attempt_at - row.attempts[0].at >= timedelta(seconds=600)


async def test_gone_disables_the_url_for_its_owner_until_a_replay(fake: FakeBusServicesRig) -> None:
    async with run_receiver(statuses_in_order(410, 204)) as receiver:
        first = await hooked(fake, receiver.url)
        (row,) = await rows(fake, first, DeliveryState.DISABLED)
        second = await hooked(fake, receiver.url)
        await rows(fake, second, DeliveryState.DISABLED)
        assert len(receiver.got) == 1
        bobs = await hooked(fake, receiver.url, "bob")
        await rows(fake, bobs, DeliveryState.DELIVERED)
        again = await fake.webhooks.delivery_log.replay("ann", row.id)
        assert (again.replays, again.state) == (1, DeliveryState.PENDING)
        await rows(fake, first, DeliveryState.DELIVERED)
        assert [got.id for got in receiver.got].count(row.id) == 2
        await rows(fake, await hooked(fake, receiver.url), DeliveryState.DELIVERED)
    registry = fake.metrics.registry
    found = parse_samples(registry.render(registry.snapshot()).decode())
    attempts = series_of(found, "lamplighter_webhook_attempts_total")
    assert attempts == {("disabled",): 1, ("delivered",): 3}, "a URL that is disabled is not asked"
    assert found["lamplighter_webhook_attempt_duration_seconds_count",] == 4


@pytest.mark.parametrize("delivery", ["nonsense", "a.b", ".1", "never.7", "one.99999999999999999999999"])
async def test_a_replay_of_nothing_is_not_found(fake: FakeBusServicesRig, delivery: str) -> None:
    with pytest.raises(ProblemError, match="not_found"):
        await fake.webhooks.delivery_log.replay("ann", delivery)


async def test_another_owners_delivery_is_not_found(fake: FakeBusServicesRig) -> None:
    async with run_receiver() as receiver:
        (row,) = await rows(fake, await hooked(fake, receiver.url), DeliveryState.DELIVERED)
    with pytest.raises(ProblemError, match="not_found"):
        await fake.webhooks.delivery_log.replay("bob", row.id)


async def test_a_name_that_stands_for_the_inside_is_never_asked(fake: FakeBusServicesRig) -> None:
    fake.names._answers["evil.test"] = [["127.0.0.1"]]
    async with run_receiver() as receiver:
        job = await hooked(fake, receiver.url.replace("files.test", "evil.test"))
        (row,) = await rows(fake, job, DeliveryState.FAILED)
        assert "loopback" in (row.attempts[0].error or "")
        assert receiver.got == []


@pytest.mark.parametrize("url", ["http://127.0.0.1/hook", "http://user:pw@example.com/", "http://[::1]/"])
async def test_a_url_that_may_never_be_asked_is_refused_at_submit(fake: FakeBusServicesRig, url: str) -> None:
    with pytest.raises(ProblemError) as refused:
        await hooked(fake, url)
    assert (refused.value.code, refused.value.errors[0].path) == ("url_refused", "$.webhook.url")


async def test_a_dead_receiver_holds_up_no_other(fake: FakeBusServicesRig) -> None:
    async with scripted_server(stay_silent) as dead, run_receiver() as receiver:
        for number in range(100):
            await hooked(fake, f"http://files.test:{dead.port}/{number}")
        job = await hooked(fake, receiver.url)
        await rows(fake, job, DeliveryState.DELIVERED)
        assert len(dead.requests) <= 4 * 2


async def test_while_a_secret_rotates_both_signatures_hold(fake: FakeBusServicesRig) -> None:
    fake.time.now = utc_now()
    old = (await fake.webhooks.secrets.get("ann")).secret
    new = (await fake.webhooks.secrets.rotate("ann")).secret
    async with run_receiver() as receiver:
        await rows(fake, await hooked(fake, receiver.url), DeliveryState.DELIVERED)
        assert receiver.got[0].verified(old) == receiver.got[0].verified(new)
        assert receiver.got[0].headers["webhook-signature"].count("v1,") == 2
        fake.time.advance(hours=24)
        await rows(fake, await hooked(fake, receiver.url), DeliveryState.DELIVERED)
        assert receiver.got[1].headers["webhook-signature"].count("v1,") == 1


async def test_two_edges_send_one(fake: FakeBusServicesRig, tmp_path: Path) -> None:
    async with fake_bus_services(tmp_path / "second", fake.broker, fake.time) as second, run_receiver() as receiver:
        jobs = [await hooked(edge, receiver.url) for edge in (fake, second) for _ in range(10)]

        async def all_there() -> bool:
            fake.time.advance(seconds=1)  # deliveries beyond the receiver's limit are delayed
            return len({got.id for got in receiver.got}) == len(jobs)

        await wait_for(all_there)
        for job in jobs:
            await rows(second, job, DeliveryState.DELIVERED)
        assert len(receiver.got) == len({got.id for got in receiver.got}) == 20


async def test_what_waits_survives_the_broker_and_the_edge(fake: FakeBusServicesRig, tmp_path: Path) -> None:
    async with run_receiver(statuses_in_order(500, 204)) as receiver:
        async with fake_bus_services(tmp_path / "first", fake.broker, fake.time) as first:
            job = await hooked(first, receiver.url)
            row = await tried(first, job, 1)
        fake.broker.restart()
        fake.time.advance(seconds=10)
        await rows(fake, job, DeliveryState.DELIVERED)
        assert [got.id for got in receiver.got] == [row.id] * 2


async def test_a_full_store_delays_deliveries_and_loses_none(fake: FakeBusServicesRig) -> None:
    async with run_receiver() as receiver:
        fake.broker._webhooks.deliveries.log.full = True
        job = await hooked(fake, receiver.url)

        async def refused() -> bool:
            return bool(await fake.webhooks.delivery_log.list_for_job(job.key))

        await wait_for(refused)
        with pytest.raises(BrokerFull):
            await fake.bus.webhook_outbox.enqueue(await _letter(fake, job))
        fake.broker._webhooks.deliveries.log.full = False
        fake.time.advance(seconds=10)
        await rows(fake, job, DeliveryState.DELIVERED)


async def _letter(fake: FakeBusServicesRig, job: Job) -> Any:
    from bus.interface import WebhookDelivery

    entry = await fake.jobs.read(job.key)
    return WebhookDelivery(entry.revision, entry.record)


async def test_a_deleted_job_takes_its_deliveries_and_their_log_along(fake: FakeBusServicesRig) -> None:
    async with run_receiver(statuses_in_order(500)) as receiver:
        job = await hooked(fake, receiver.url)
        await tried(fake, job, 1)
        await fake.jobs.cancel(job.key)
        await rows(fake, job, *[DeliveryState.PENDING] * 2)
        await fake.wait_until_indexed()
        await fake.jobs.delete(job.key)
    assert await fake.bus.delivery_log.rows() == {}
    fake.time.advance(hours=1)
    assert await fake.bus.webhook_outbox.fetch() is None


async def test_a_receiver_that_says_too_much_is_not_read(fake: FakeBusServicesRig) -> None:
    async with run_receiver(lambda _: Response(bytes(5_000_000))) as receiver:
        await rows(fake, await hooked(fake, receiver.url), DeliveryState.DELIVERED)
