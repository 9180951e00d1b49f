"""Webhooks from real processes: signed for the public package, kept while edge and broker are killed."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from schemas.job_view import JobView
from tests.e2e.conftest import process_only
from tests.support.installation import RunningInstallation, run_new_installation, wait_until_ready
from tests.support.wait import wait_for
from tests.support.webhook_receiver import WebhookReceiver, run_receiver, statuses_in_order

pytestmark = process_only

ALLOW = {"LAMPLIGHTER_OUTBOUND__ALLOW": '["127.0.0.1"]'}


def receiver_url(receiver: WebhookReceiver) -> str:
    """Return the receiver's URL by a name in the public DNS."""
    return receiver.url.replace("files.test", "127.0.0.1")


@pytest.fixture
async def running_with_receivers(tmp_path: Path, engine: str) -> AsyncIterator[RunningInstallation]:
    """Start an edge that may send to receivers on this machine."""
    async with run_new_installation(tmp_path, engine, None, **ALLOW) as running:
        yield running
        print(running.installation.tail())  # noqa: T201 - shown by pytest when the test failed


async def secret(running: RunningInstallation) -> str:
    return str((await running.ann._http.get("/v1/webhooks/secret")).json()["secret"])


async def states(running: RunningInstallation, job: JobView) -> list[str]:
    rows = (await running.ann._http.get(f"/v1/jobs/{job.id}/deliveries")).json()["deliveries"]
    return [row["state"] for row in rows]


async def test_a_job_is_reported_to_its_receiver_from_beginning_to_end(running_with_receivers: RunningInstallation):
    running = running_with_receivers
    await running.installation.start_runner()
    async with run_receiver() as receiver:
        job = await running.ann.submit("echo", text="hello", webhook=receiver_url(receiver), wait=True)
        key = await secret(running)

        async def ended() -> bool:
            return any(got.job["status"] == "succeeded" for got in receiver.got)

        await wait_for(ended, timeout_s=60)
        for got in receiver.got:
            assert got.verified(key)["type"] == "job.state"
        assert {got.job["id"] for got in receiver.got} == {job.id}
        assert len(receiver.got) == len({got.id for got in receiver.got})


async def test_a_delivery_waits_on_over_the_death_of_edge_and_broker(
    running_with_receivers: RunningInstallation,
):
    running = running_with_receivers
    async with run_receiver(statuses_in_order(503, 204)) as receiver:
        job = await running.ann.submit("echo", text="hello", webhook=receiver_url(receiver))
        await receiver.wait_for_deliveries(1)

        async def noted() -> bool:
            rows = (await running.ann._http.get(f"/v1/jobs/{job.id}/deliveries")).json()["deliveries"]
            return bool(rows and rows[0]["next_at"])

        await wait_for(noted)
        await running.installation.edge.kill()
        await running.installation.server.stop()
        await running.installation.server.start()
        await running.installation.start_edge(**ALLOW)
        await wait_until_ready(running.ann)
        first, second = (await _came(receiver, 2))[:2]
        assert first.id == second.id

        async def delivered() -> bool:
            return await states(running, job) == ["delivered"]

        await wait_for(delivered, timeout_s=60)


async def test_a_job_that_ends_while_the_edge_is_dead_is_told_once_to_the_webhook_of_its_owner(
    running_with_receivers: RunningInstallation,
):
    running = running_with_receivers
    await running.installation.start_runner()
    async with run_receiver() as receiver:
        webhook = await running.ann.add_webhook(receiver_url(receiver), endpoints=["echo"], states=["succeeded"])
        job = await running.ann.submit("echo", text="hello")
        await running.installation.edge.kill()
        await running.installation.start_edge(**ALLOW)
        await wait_until_ready(running.ann)

        async def delivered() -> bool:
            return await states(running, job) == ["delivered"]

        await wait_for(delivered, timeout_s=90)
        (got,) = receiver.got
        assert got.verified(await secret(running))["data"]["status"] == "succeeded"
        assert got.id.endswith(webhook["id"])
        again = await running.ann.submit("echo", text="hello", wait=True)
        told = await _came(receiver, 2)
        assert [one.job["id"] for one in told] == [job.id, again.id]


async def _came(receiver: WebhookReceiver, count: int):
    async def enough() -> bool:
        return len(receiver.got) >= count

    await wait_for(enough, timeout_s=90)
    return receiver.got
