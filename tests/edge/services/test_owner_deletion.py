"""Deletion of an owner: what is deleted, what is refused meanwhile, and that it continues after a crash."""

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest
from msgspec import structs

from bus.interface import BrokerUnreachable, WebhookDelivery
from edge.assets.uploads import UploadChunk, UploadParameters
from edge.deletion import OwnerDeletionService
from edge.owners.api_keys import ApiKeyStore
from edge.usage import job_usage
from schemas import events as e
from schemas.asset import reference_key
from schemas.credentials import CLIENT_SCOPES, Scope
from schemas.endpoint_parts import Cache
from schemas.events import FeedPosition, LogMessage
from schemas.installation import DeletionCounts, OwnerDeletion, OwnerDeletionState
from schemas.job import Job, JobKey, Output, OutputFile, Status
from schemas.problems import ProblemError
from tests.support.edge_services import (
    ECHO_ENDPOINT,
    EdgeServicesRig,
    FakeBusServicesRig,
    FixedEntropy,
    fake_bus_services,
)
from tests.support.wait import wait_for

SAID_OF_ANN = 6  # three changes and a line of the job that ended, and that the two others were submitted


def keys_of(edge: EdgeServicesRig) -> ApiKeyStore:
    return ApiKeyStore(edge.bus.api_keys, edge.time, FixedEntropy(), edge.time.seconds)


async def swept(edge: EdgeServicesRig, erasures: OwnerDeletionService, owner: str = "ann") -> OwnerDeletion:
    """Run one sweep, and wait until the index has its changes."""
    await erasures.sweep()
    await edge.wait_until_indexed()
    return await erasures.report(owner)


async def gone(edge: EdgeServicesRig, erasures: OwnerDeletionService, owner: str = "ann") -> OwnerDeletion:
    """Sweep until the deletion is done."""

    async def done() -> bool:
        report = await swept(edge, erasures, owner)
        if report.state is OwnerDeletionState.VERIFYING:
            edge.time.advance(seconds=71)
        return report.state is OwnerDeletionState.DONE

    await wait_for(done)
    return await erasures.report(owner)


async def deleted_at(edge: EdgeServicesRig) -> datetime | None:
    """Return what hosts are told of ann."""
    row = await edge.bus.deleted_owners.get("ann")
    return row.value.at if row else None


async def piece() -> AsyncIterator[bytes]:
    yield b"half"


async def peopled(edge: EdgeServicesRig, keys: ApiKeyStore, owner: str) -> Job:
    """Create one of everything for an owner; return the job, which has ended."""
    await keys.create(owner, CLIENT_SCOPES, name="phone")
    asset = await edge.put(owner, f"the film of {owner}".encode(), "film.mp4")
    given = {"endpoint": "echo", "input": {"text": "hi", "file": f"sha256:{asset}"}}
    job = (await edge.jobs.submit(owner, given | {"webhook": {"url": "https://files.test/h"}})).entry.record.job
    result = await edge.put(owner, f"the result of {owner}".encode())
    await edge.start(job)
    note = LogMessage(FeedPosition(1, 1, 1), edge.time(), "stdout", "said")
    await edge.runner_bus.feed.publish(job.key, note)
    done = await edge.write_event(job.key, e.Succeeded(Output((OutputFile("a", result, 1, "x/y"),))))
    await edge.bus.job_queue.remove(job.pointer)
    await edge.bus.usage_log.add(job_usage(done, 7))
    await edge.bus.webhook_outbox.enqueue(WebhookDelivery(7, e.JobRecord(edge.time(), e.Succeeded(Output()), done)))
    await edge.webhooks.secrets.get(owner)
    await edge.secrets.set(owner, "HF_TOKEN", f"the secret of {owner}", "k")
    await edge.webhooks.owner_webhooks.add(owner, "https://files.test/all")
    upload = await edge.uploads.create(owner, UploadParameters(name="part.mp4", media_type="video/mp4", length=9))
    await edge.uploads.append(owner, upload.id, UploadChunk(offset=0, chunks=piece()))
    return done


async def everything(edge: EdgeServicesRig, owner: str) -> list[object]:
    """Return all data of an owner that the services store."""
    bus = edge.bus
    places = (bus.asset_references, bus.delivery_log)
    rows = [name for table in places for name in await table.rows(f"{owner}.")]
    held = [item async for item in bus.feed.replay(owner)]
    jobs = [key for key in await bus.job_store.keys() if key.owner == owner]
    used = [use for use in await bus.usage_log.job_rows(edge.time.now.replace(year=2000)) if use.owner == owner]
    keys = [row.value for row in (await bus.api_keys.rows()).values() if row.value.owner == owner]
    uploads = edge.upload_states.list_keys(owner)
    hooks = [await bus.webhook_configs.get(owner)] if await bus.webhook_configs.get(owner) else []
    wide = [await bus.owner_webhooks.get(owner)] if await bus.owner_webhooks.get(owner) else []
    waiting = list(await bus.job_queue.list_pending(owner))
    secrets = list(await bus.secrets.rows(f"owner.{owner}."))
    return [*rows, *held, *jobs, *used, *keys, *uploads, *hooks, *wide, *waiting, *secrets]


async def test_everything_of_the_owner_goes_and_nothing_of_another(edge: EdgeServicesRig) -> None:
    keys = keys_of(edge)
    erasures = edge.erasures(keys)
    await edge.announce_capabilities()
    await peopled(edge, keys, "ann")
    await peopled(edge, keys, "bob")
    bobs = await everything(edge, "bob")
    waiting = await edge.submit("ann", "waits")
    scheduled = await edge.submit("ann", "later", not_before="2027-01-01T00:00:00Z")

    async def all_said() -> bool:  # FEED follows the records asynchronously
        return len([item async for item in edge.bus.feed.replay("ann")]) >= SAID_OF_ANN

    await wait_for(all_said)
    assert (await erasures.start("ann", by="k")).state is OwnerDeletionState.RUNNING
    report = await gone(edge, erasures)
    assert await everything(edge, "ann") == []
    assert {await edge.bus.job_store.read(job.key) for job in (waiting, scheduled)} == {None}
    told = report.counts
    assert (told.jobs, told.cancelled, told.assets, told.uploads, told.keys) == (3, 2, 2, 1, 1)
    assert (told.bytes, told.usage_rows, told.secrets) == (len("the film of ann" + "the result of ann"), 1, 1)
    assert told.feed >= SAID_OF_ANN
    assert told.deliveries >= 1
    assert (report.requested_by, report.hosts_pending, report.finished_at is not None) == ("k", ("gpu-1",), True)
    assert (await edge.store.survey()).trashed == ()
    there = await everything(edge, "bob")
    assert [one for one in bobs if one not in there] == []


async def test_asked_again_it_is_the_same_deletion(fake: FakeBusServicesRig) -> None:
    erasures = fake.erasures(keys_of(fake))
    await fake.put("ann", b"x")
    first = await erasures.start("ann", by="one")
    assert await erasures.start("ann", by="two") == first
    done = await gone(fake, erasures)
    assert await erasures.start("ann") == done
    await fake.put("ann", b"y")
    again = await erasures.start("ann")
    assert (again.state, again.counts) == (OwnerDeletionState.RUNNING, DeletionCounts())
    assert (await gone(fake, erasures)).counts.assets == 1


async def test_nothing_new_is_taken_until_it_is_done(fake: FakeBusServicesRig) -> None:
    erasures = fake.erasures(keys_of(fake))
    job = await fake.submit(job_id="mine")
    await fake.jobs.cancel(job.key)
    await erasures.start("ann")
    upload = fake.uploads.create("ann", UploadParameters(name="x", media_type="x/y", length=3))
    for attempt in (fake.submit(), fake.put("ann", b"x"), upload, fake.jobs.retry(job.key)):
        with pytest.raises(ProblemError) as caught:
            await attempt
        assert (caught.value.code, caught.value.problem.status) == ("owner_deleting", 409)
    await fake.submit("bob")
    await gone(fake, erasures)
    await fake.submit()


async def test_another_edge_refuses_too_and_what_it_took_before_goes(fake: FakeBusServicesRig, tmp_path: Path) -> None:
    erasures = fake.erasures(keys_of(fake))
    await fake.put("ann", b"x")
    async with fake_bus_services(tmp_path / "second", fake.broker, fake.time) as second:
        other = second.erasures(keys_of(second))
        await erasures.start("ann")
        assert (await swept(fake, erasures)).counts.assets == 1
        told = await deleted_at(fake)
        assert told is not None
        fake.time.advance(seconds=1)
        await swept(fake, erasures)
        assert await deleted_at(fake) == told
        await second.submit("ann", "late")
        await second.uploads.create("ann", UploadParameters(name="x", media_type="x/y", length=3))
        await other.sweep()
        with pytest.raises(ProblemError):
            await second.submit("ann", "too late")
        await second.wait_until_indexed()
        await fake.wait_until_indexed()
        report = await gone(fake, erasures)
        assert (report.counts.jobs, report.counts.uploads) == (1, 1)
        assert (await deleted_at(fake) or told) > told  # the late job may have made a cache
        await other.sweep()
        await second.submit("ann", "anew")


async def test_hosts_are_told_to_remove_the_caches_and_which_may_have_some(fake: FakeBusServicesRig) -> None:
    cached = structs.replace(ECHO_ENDPOINT, caches=(Cache(name="kernels", path="/kernels", max_mb=1),))
    await fake.announce_capabilities(host="gpu-1")
    await fake.announce_capabilities(host="gpu-2", endpoints=(cached,))
    erasures = fake.erasures(keys_of(fake))
    await erasures.start("ann")
    assert (await gone(fake, erasures)).hosts_pending == ("gpu-2",)
    assert await fake.runner_bus.deleted_owners.keys() == {"ann"}
    fake.time.advance(days=401)
    await erasures.start("bob")
    await swept(fake, erasures, "bob")
    assert await fake.runner_bus.deleted_owners.keys() == {"bob"}


async def test_a_running_job_is_stopped_first(edge: EdgeServicesRig) -> None:
    erasures = edge.erasures(keys_of(edge))
    job = await edge.start(await edge.submit())
    await erasures.start("ann")
    for _ in range(2):
        report = await swept(edge, erasures)
        assert (report.state, report.waiting_for, report.counts.jobs) == (OwnerDeletionState.RUNNING, 1, 0)
    assert (await edge.read(job)).status is Status.CANCELLING
    assert await edge.runner_bus.deleted_owners.keys() == set()
    await edge.write_event(job.key, e.Cancelled())
    report = await gone(edge, erasures)
    assert (report.waiting_for, report.counts.jobs) == (0, 1)
    assert await edge.runner_bus.deleted_owners.keys() == {"ann"}


async def test_it_goes_on_after_a_crash_at_any_step(fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step fails once, and a new service continues from the stored state."""
    keys = keys_of(fake)
    await peopled(fake, keys, "ann")
    await fake.erasures(keys).start("ann")
    bus = fake.bus
    for place, verb in (
        (bus.api_keys, "delete"),
        (bus.job_store, "delete"),
        (bus.feed, "delete"),
        (bus.webhook_outbox, "remove"),
        (bus.webhook_configs, "delete"),
        (bus.usage_log, "delete_owner"),
        (bus.deleted_owners, "put"),
        (bus.asset_references, "delete"),
        (bus.tombstones, "put"),
        (bus.owner_deletions, "update"),
    ):

        async def away(*_: object, **__: object) -> None:
            raise BrokerUnreachable("away")

        async def fails() -> bool:  # only after the index has the changes of the step before
            try:
                await fake.erasures(keys).sweep()
            except (BrokerUnreachable, ProblemError):
                return True
            return False

        with monkeypatch.context() as patch:
            patch.setattr(place, verb, away)
            await wait_for(fails)
        await fake.wait_until_indexed()
    report = await gone(fake, fake.erasures(keys))
    assert await everything(fake, "ann") == []
    assert report.counts.jobs == 1
    assert (await fake.store.survey()).trashed == ()


async def test_a_record_that_cannot_be_read_goes_too(fake: FakeBusServicesRig) -> None:
    erasures = fake.erasures(keys_of(fake))
    fake.broker.corrupt("$KV.STATE.ann.odd", b"{rubbish")
    await erasures.start("ann")
    await gone(fake, erasures)
    assert JobKey("ann", "odd") not in await fake.bus.job_store.keys()


async def test_what_another_owner_has_too_stays_his(fake: FakeBusServicesRig) -> None:
    erasures = fake.erasures(keys_of(fake))
    sha256 = await fake.put("ann", b"shared")
    await fake.put("bob", b"shared")
    await erasures.start("ann")
    await gone(fake, erasures)
    assert await fake.store.stat(sha256)
    assert list(await fake.bus.asset_references.rows()) == [reference_key("bob", sha256)]


async def test_whoever_a_host_goes_by_is_no_owner_to_delete(fake: FakeBusServicesRig) -> None:
    keys = keys_of(fake)
    await keys.create("gpu-1", [Scope.RUNNER])
    with pytest.raises(ProblemError) as caught:
        await fake.erasures(keys).start("gpu-1")
    assert caught.value.code == "conflict"
    with pytest.raises(ProblemError) as caught:
        await fake.erasures(keys).report("gpu-1")
    assert caught.value.code == "not_found"


async def test_two_edges_do_it_once(fake: FakeBusServicesRig, tmp_path: Path) -> None:
    async with fake_bus_services(tmp_path / "second", fake.broker, fake.time) as second:
        erasures = fake.erasures(keys_of(fake))
        other = second.erasures(keys_of(second))
        for number in range(30):
            await fake.submit(text=str(number))
        await second.wait_until_indexed()
        await erasures.start("ann")
        for _ in range(3):
            await erasures.sweep()
            await other.sweep()
            await fake.wait_until_indexed()
        assert (await gone(fake, erasures)).counts.jobs == 30


async def test_a_deleted_job_leaves_no_delivery_no_log_and_no_message(edge: EdgeServicesRig) -> None:
    keys = keys_of(edge)
    job = await peopled(edge, keys, "ann")
    await edge.jobs.delete(job.key)
    assert [item async for item in edge.bus.feed.replay("ann")] == []
    assert await edge.bus.delivery_log.rows("ann.") == {}
    assert await edge.bus.webhook_outbox.remove("ann") == 0
    kept = [f"sha256:{row.sha256}" for row in (await edge.assets.list("ann")).assets]
    assert kept == [job.input["file"]], "the result went, the input was its owner's own"
    used = await edge.bus.usage_log.job_rows(edge.time.now.replace(year=2000))
    assert [use.id for use in used] == [job.id], "what was used is billed, whatever becomes of the job"
