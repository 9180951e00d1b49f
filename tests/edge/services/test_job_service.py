"""The operations of owners on jobs, and their answers."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace

from bus.health import BrokerStatus
from bus.interface import BrokerFull, BrokerUnreachable, RevisionConflict, VersionedRecord
from edge.jobs.submission import _check_times
from schemas import events as e
from schemas.events import JobRecord
from schemas.job import TRACE_ID_LIMIT_CHARS, Job, JobKey, Output, Pointer, Priority, Status
from schemas.lifecycle import make_job_failure
from schemas.problems import ProblemError
from tests.support.edge_services import START, EdgeServicesRig, FakeBusServicesRig
from tests.support.metric_samples import parse_samples, series_of

BODY: dict[str, Any] = {"endpoint": "echo", "input": {"text": "hello"}}


async def refused(code: str, coroutine: Any) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        await coroutine
    assert caught.value.code == code, caught.value
    return caught.value


async def test_a_submit_is_recorded_queued_and_published(edge: EdgeServicesRig) -> None:
    accepted = await edge.jobs.submit("ann", BODY, trace_id="t1")
    await edge.publish_window.wait_until_idle()
    job = accepted.entry.record.job
    assert (job.status, job.pool, job.round, job.trace_id) == (Status.QUEUED, "echo", 1, "t1")
    assert job.input == {"text": "hello", "seconds": 0}
    assert await edge.bus.job_queue.list_pending() == {Pointer("echo", Priority.NORMAL, "ann", job.id, 1)}
    assert not accepted.replayed
    assert isinstance(accepted.entry.record.event, e.Submitted)


async def test_the_same_key_twice_at_once_is_one_job(edge: EdgeServicesRig) -> None:
    answers = []

    async def submit() -> None:
        answers.append(await edge.jobs.submit("ann", BODY, idempotency_key="k"))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(submit)
    assert sorted(answer.replayed for answer in answers) == [False, True, True, True, True]
    assert len({answer.entry.record.job.id for answer in answers}) == 1
    assert len(await edge.list_pointers()) == 1


async def test_a_known_name_with_another_body_is_refused(edge: EdgeServicesRig) -> None:
    other = {"endpoint": "echo", "input": {"text": "other"}}
    await edge.jobs.submit("ann", BODY, job_id="mine")
    await edge.jobs.submit("ann", BODY, idempotency_key="k")
    await refused("conflict", edge.jobs.submit("ann", other, job_id="mine"))
    await refused("idempotency_mismatch", edge.jobs.submit("ann", other, idempotency_key="k"))
    assert not (await edge.jobs.submit("bob", other, job_id="mine")).replayed


async def test_a_known_name_is_answered_before_anything_is_checked(fake: FakeBusServicesRig) -> None:
    first = await fake.jobs.submit("ann", BODY, job_id="mine")
    fake.broker.fill()
    again = await fake.jobs.submit("ann", {**BODY, "trace_id": "other"}, job_id="mine")
    assert again.replayed
    assert again.entry == first.entry


@pytest.mark.parametrize(
    ("body", "code", "path"),
    [
        ({"input": {}}, "input_invalid", "$.endpoint"),
        ({"endpoint": "echo", "input": []}, "input_invalid", "$.input"),
        ({**BODY, "priority": "urgent"}, "input_invalid", "$.priority"),
        ({**BODY, "tags": {"a": 1}}, "input_invalid", "$.tags[...]"),
        ({**BODY, "foo": 1}, "field_unknown", "$.foo"),
        ({**BODY, "policy": {"foo": 1}}, "field_unknown", "$.policy.foo"),
        ({**BODY, "not_before": "2026-11-22T01:00:00"}, "input_invalid", "$.not_before"),
        ({**BODY, "deadline": "2020-01-01T00:00:00Z"}, "input_invalid", "$.deadline"),
        ({**BODY, "not_before": "9999-12-31T23:00:00Z"}, "input_invalid", "$.not_before"),
        ({**BODY, "not_before": "9999-12-31T23:59:59-14:00"}, "input_invalid", "$.not_before"),
        ({**BODY, "deadline": "0001-01-01T00:00:00+14:00"}, "input_invalid", "$.deadline"),
        ({"endpoint": "echo", "input": {"text": 5}}, "input_invalid", "$.input.text"),
        ({"endpoint": "echo", "input": {"nope": 5}}, "input_invalid", "$.input.nope"),
        ({"endpoint": "echo", "input": {"file": "ftp://x.example/a.mp4"}}, "url_refused", "$.input.file"),
        ({"endpoint": "echo", "input": {"file": "sha256:12"}}, "input_invalid", "$.input.file"),
        ({"endpoint": "echo", "input": {"text": "x" * 70_000}}, "input_invalid", "$.input"),
    ],
)
async def test_what_is_wrong_is_named_by_its_path(
    fake: FakeBusServicesRig, body: dict[str, Any], code: str, path: str
) -> None:
    error = await refused(code, fake.jobs.submit("ann", body))
    assert [fault.path for fault in error.errors] == [path]
    assert await fake.bus.job_store.keys() == set()


async def test_an_unknown_endpoint_says_which_are_known(edge: EdgeServicesRig) -> None:
    error = await refused("endpoint_unknown", edge.jobs.submit("ann", {"endpoint": "nope", "input": {}}))
    assert "echo" in error.detail


async def test_a_job_id_is_a_token(edge: EdgeServicesRig) -> None:
    await refused("input_invalid", edge.jobs.submit("ann", BODY, job_id="a.b"))


async def test_an_asset_must_be_the_owners_own(edge: EdgeServicesRig) -> None:
    digest = await edge.put("ann", b"film")
    body = {"endpoint": "echo", "input": {"file": f"sha256:{digest}"}}
    error = await refused("asset_missing", edge.jobs.submit("bob", body))
    assert error.missing == (f"sha256:{digest}",)
    assert not (await edge.jobs.submit("ann", body)).replayed


async def test_a_job_for_later_is_scheduled_and_not_published(edge: EdgeServicesRig) -> None:
    job = await edge.submit(not_before=(START + timedelta(hours=1)).isoformat())
    assert (job.status, job.queued_at) == (Status.SCHEDULED, None)
    assert await edge.list_pointers() == []


async def test_a_start_that_is_not_in_the_future_does_not_delay_the_job(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake.jobs._admission, "_clock", lambda: START)
    at_once, later = await fake.submit(not_before=START.isoformat()), START + timedelta(microseconds=1)
    assert (at_once.status, at_once.queued_at) == (Status.QUEUED, START)
    assert (await fake.submit(not_before=later.isoformat())).status is Status.SCHEDULED


async def test_a_full_store_and_an_absent_broker_refuse_new_work(fake: FakeBusServicesRig) -> None:
    fake.broker.fill()
    fake.time.advance(seconds=5)
    await refused("store_full", fake.jobs.submit("ann", BODY))
    fake.broker.fill(False)
    fake.bus.cut()
    error = await refused("unavailable", fake.jobs.submit("ann", BODY))
    assert error.retry_after_s
    await refused("unavailable", fake.jobs.submit("ann", BODY, job_id="mine"))


async def test_a_crash_between_record_and_pointer_is_made_good(
    edge: EdgeServicesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = anyio.CancelScope()

    async def die(_: Job) -> None:
        crash.cancel()
        await anyio.lowlevel.checkpoint()

    with monkeypatch.context() as patch, crash:
        patch.setattr(edge.publish_window, "publish_if_room", die)
        await edge.jobs.submit("ann", BODY, job_id="mine")
    assert await edge.bus.job_store.read(JobKey("ann", "mine")) is not None
    await edge.wait_until_indexed()
    await edge.reconciler.sweep()
    assert await edge.list_pointers() == ["mine"]


async def test_a_queue_that_refuses_does_not_refuse_the_job(
    edge: EdgeServicesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object, **__: object) -> None:
        raise BrokerFull

    with monkeypatch.context() as patch:
        patch.setattr(edge.bus.job_queue, "publish", full)
        job = await edge.submit()
        assert await edge.list_pointers() == []  # in the patch: the index, too, publishes it
    await edge.wait_until_indexed()
    await edge.reconciler.sweep()
    assert await edge.list_pointers() == [job.id]


async def test_cancel_of_a_queued_job_takes_its_message_too(edge: EdgeServicesRig) -> None:
    job = await edge.submit()
    entry = await edge.jobs.cancel(job.key)
    assert entry.record.job.status is Status.CANCELLED
    assert await edge.list_pointers() == []
    await refused("job_final", edge.jobs.cancel(job.key))


async def test_cancel_of_a_running_job_asks_its_host(edge: EdgeServicesRig) -> None:
    job = await edge.submit()
    await edge.start(job)
    nudges = edge.runner_bus.host_nudges.subscribe("gpu-1")
    heard = []

    async def listen() -> None:
        heard.append(await anext(nudges))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        await anyio.wait_all_tasks_blocked()
        assert (await edge.jobs.cancel(job.key)).record.job.status is Status.CANCELLING
    assert heard == [job.key]
    assert (await edge.jobs.cancel(job.key)).record.job.status is Status.CANCELLING


async def test_cancel_racing_the_finish_has_one_final_state(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await fake.submit()
    await fake.start(job)
    update = fake.bus.job_store.update

    async def late(*args: Any) -> int:
        monkeypatch.setattr(fake.bus.job_store, "update", update)
        await fake.write_event(job.key, e.Succeeded(Output()))
        return await update(*args)

    monkeypatch.setattr(fake.bus.job_store, "update", late)
    await refused("job_final", fake.jobs.cancel(job.key))
    assert (await fake.read(job)).status is Status.SUCCEEDED


async def test_retry_begins_a_round_and_cancel_ends_it(edge: EdgeServicesRig) -> None:
    job = await edge.submit()
    await refused("job_not_final", edge.jobs.retry(job.key))
    await edge.jobs.cancel(job.key)
    again = (await edge.jobs.retry(job.key)).record.job
    await edge.publish_window.wait_until_idle()
    assert (again.status, again.round, again.input) == (Status.QUEUED, 2, job.input)
    assert await edge.bus.job_queue.list_pending() == {again.pointer}
    outcomes: list[str] = []

    async def attempt(call: Any) -> None:
        try:
            outcomes.append((await call(job.key)).record.job.status)
        except ProblemError as error:
            outcomes.append(error.code)

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(attempt, edge.jobs.cancel)
            tasks.start_soon(attempt, edge.jobs.retry)
    last = await edge.read(job)
    finals = [row for row in await edge.jobs.read_history(job.key) if row.event["type"] == "cancelled"]
    assert len(finals) == last.round - (last.status is Status.QUEUED)
    assert await edge.bus.job_queue.list_pending() == ({last.pointer} if last.status is Status.QUEUED else set())


async def test_retry_is_refused_after_success_and_after_the_deadline(edge: EdgeServicesRig) -> None:
    done = await edge.submit()
    await edge.finish(done)
    await refused("job_final", edge.jobs.retry(done.key))
    late = await edge.submit(deadline=(START + timedelta(hours=1)).isoformat())
    await edge.jobs.cancel(late.key)
    edge.time.advance(hours=2)
    await refused("deadline_passed", edge.jobs.retry(late.key))


async def test_another_owners_job_is_not_there(edge: EdgeServicesRig) -> None:
    job = await edge.submit("ann")
    for call in (edge.jobs.read, edge.jobs.read_history, edge.jobs.cancel, edge.jobs.retry, edge.jobs.delete):
        await refused("not_found", call(JobKey("bob", job.id)))


async def test_history_tells_every_event(edge: EdgeServicesRig) -> None:
    job = await edge.submit()
    await edge.finish(job)
    rows = await edge.jobs.read_history(job.key)
    assert [row.event["type"] for row in rows] == ["submitted", "started", "succeeded"]
    assert [row.status for row in rows] == ["queued", "running", "succeeded"]
    assert rows == sorted(rows, key=lambda row: row.revision)


async def test_delete_takes_record_feed_outputs_and_logs(edge: EdgeServicesRig) -> None:
    kept, log = await edge.put("ann", b"input"), await edge.put("ann", b"log")
    accepted = await edge.jobs.submit("ann", {"endpoint": "echo", "input": {"file": f"sha256:{kept}"}})
    job = accepted.entry.record.job
    await refused("job_not_final", edge.jobs.delete(job.key))
    await edge.start(job)
    await edge.write_event(job.key, e.Succeeded(Output(), log=log))
    report = await edge.jobs.delete(job.key)
    assert report.assets == (log,)
    assert await edge.assets.split_present("ann", [kept, log]) == ((kept,), (log,))
    await refused("not_found", edge.jobs.read(job.key))
    assert await edge.bus.feed.last_progress(job.key) is None


async def test_a_retry_waits_for_a_broker_that_is_well(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nearly_full() -> BrokerStatus:
        return BrokerStatus(0.9, is_durable=True, version="")

    job = await fake.submit()
    await fake.jobs.cancel(job.key)
    monkeypatch.setattr(fake.bus.health, "status", nearly_full)
    fake.time.advance(seconds=5)
    await refused("store_full", fake.jobs.retry(job.key))
    assert (await fake.read(job)).status is Status.CANCELLED


async def test_the_deadline_is_the_first_moment_that_is_too_late(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadline = START + timedelta(hours=1)
    job = await fake.submit(deadline=deadline.isoformat())
    await fake.jobs.cancel(job.key)
    monkeypatch.setattr(fake.jobs, "_clock", lambda: deadline)
    await refused("deadline_passed", fake.jobs.retry(job.key))
    monkeypatch.setattr(fake.jobs, "_clock", lambda: deadline - timedelta(microseconds=1))
    assert (await fake.jobs.retry(job.key)).record.job.round == 2


async def test_a_job_keeps_the_id_of_its_request(fake: FakeBusServicesRig) -> None:
    accepted = await fake.jobs.submit("ann", BODY, job_id="mine", request_id="r1")
    again = await fake.jobs.submit("ann", BODY, job_id="mine", request_id="r2")
    await fake.jobs.submit_equivalent(JobKey("ann", "same"), BODY, request_id="r3")
    equal = (await fake.jobs.read(JobKey("ann", "same"))).record.job.request_id
    ids = [one.entry.record.job.request_id for one in (accepted, again)]
    assert [*ids, equal] == ["r1", "r1", "r3"]
    assert (await fake.jobs.read(JobKey("ann", "mine"))).record.job.request_id == "r1"


async def test_the_outputs_and_logs_of_every_round_go_with_the_job(fake: FakeBusServicesRig) -> None:
    logs = {await fake.put("ann", b"first"), await fake.put("ann", b"second")}
    job = await fake.submit()
    for log in sorted(logs):
        await fake.start(job)
        await fake.write_event(job.key, e.Failed(make_job_failure("internal", "why"), log=log))
        if log != max(logs):
            await fake.jobs.retry(job.key)
    assert set((await fake.jobs.delete(job.key)).assets) == logs


@pytest.mark.parametrize("running", [False, True])
async def test_what_was_cancelled_is_cancelled_though_the_broker_goes_away(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch, running: bool
) -> None:
    async def away(*_: object) -> None:
        raise BrokerUnreachable("the test said so")

    job = await fake.submit()
    if running:
        await fake.start(job)
    monkeypatch.setattr(fake.bus.job_queue, "remove", away)
    monkeypatch.setattr(fake.bus.host_nudges, "nudge", away)
    cancelled = (await fake.jobs.cancel(job.key)).record.job
    assert cancelled.status is (Status.CANCELLING if running else Status.CANCELLED)


async def test_only_a_job_that_waits_is_cancelled_by_a_client_that_wants_no_more(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    nudged: list[JobKey] = []

    async def nudge(_: str, key: JobKey) -> None:
        nudged.append(key)

    monkeypatch.setattr(fake.bus.host_nudges, "nudge", nudge)
    waiting, running = await fake.submit(text="1"), await fake.submit(text="2")
    later = await fake.submit(not_before=(START + timedelta(hours=1)).isoformat())
    await fake.start(running)
    statuses = [(await fake.jobs.cancel_waiting(job.key)).record.job.status for job in (waiting, later, running)]
    assert statuses == [Status.CANCELLED, Status.CANCELLED, Status.RUNNING]
    assert nudged == []


async def test_a_writer_sees_its_own_writes_in_the_index(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, int]] = []
    monkeypatch.setattr(fake.index, "record_own_write", lambda owner, revision: written.append((owner, revision)))
    accepted = await fake.jobs.submit("ann", BODY, job_id="mine")
    cancelled = await fake.jobs.cancel(JobKey("ann", "mine"))
    retried = await fake.jobs.retry(JobKey("ann", "mine"))
    assert set(written) == {("ann", entry.revision) for entry in (accepted.entry, cancelled, retried)}


async def test_an_equal_request_is_answered_before_anything_is_checked(fake: FakeBusServicesRig) -> None:
    first = await fake.jobs.submit("ann", BODY, job_id="mine")
    fake.broker.fill()
    fake.time.advance(seconds=5)
    again = await fake.jobs.submit_equivalent(JobKey("ann", "mine"), BODY)
    assert (again.replayed, again.entry) == (True, first.entry)


async def test_a_job_that_was_created_and_deleted_meanwhile_is_an_error(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def conflict(*_: object) -> int:
        raise RevisionConflict("another request has created it")

    monkeypatch.setattr(fake.bus.job_store, "create", conflict)
    with pytest.raises(ProblemError):
        await fake.jobs.submit("ann", BODY, job_id="mine")


async def test_another_round_is_written_over_what_was_read_alone(fake: FakeBusServicesRig) -> None:
    other = {"endpoint": "echo", "input": {"text": "other"}}
    job = await fake.submit()
    await fake.jobs.cancel(job.key)
    ended = await fake.jobs.read(job.key)
    assert await fake.jobs.resubmit(ended, other)
    assert await fake.jobs.resubmit(ended, BODY) is False
    now = await fake.read(job)
    assert (now.round, now.status, now.input["text"]) == (2, Status.QUEUED, "other")
    await fake.publish_window.wait_until_idle()
    assert await fake.bus.job_queue.list_pending() == {now.pointer}


async def test_a_new_job_and_a_new_round_count_as_submits_and_a_replay_does_not(fake: FakeBusServicesRig) -> None:
    job = await fake.submit(job_id="mine")
    await fake.submit(job_id="mine")
    await refused("conflict", fake.submit(job_id="mine", text="other"))
    await fake.jobs.cancel(job.key)
    assert await fake.jobs.resubmit(await fake.jobs.read(job.key), BODY)
    for _ in range(2):
        await fake.jobs.submit_equivalent(JobKey("ann", "equal"), BODY)
    registry = fake.metrics.registry
    found = parse_samples(registry.render(registry.snapshot()).decode())
    assert series_of(found, "lamplighter_submits_total") == {("echo",): 3}
    assert series_of(found, "lamplighter_submit_replays_total") == {("echo",): 2}
    assert series_of(found, "lamplighter_submit_refusals_total") == {("conflict",): 1}


async def test_a_broker_whose_health_is_unknown_gets_no_record(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away() -> None:
        raise BrokerUnreachable("the test said so")

    monkeypatch.setattr(fake.bus.health, "status", away)
    fake.time.advance(seconds=5)
    await refused("unavailable", fake.jobs.submit("ann", BODY))
    assert await fake.bus.job_store.keys() == set()


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ({"webhook": {"url": "http://127.0.0.1/"}}, "$.webhook.url"),
        ({"input": {"file": "http://127.0.0.1/a.mp4"}}, "$.input.file"),
    ],
)
async def test_a_url_inwards_is_refused_before_and_at_the_submit(
    fake: FakeBusServicesRig, more: dict[str, Any], path: str
) -> None:
    for coroutine in (fake.jobs.validate({**BODY, **more}), fake.jobs.submit("ann", {**BODY, **more})):
        error = await refused("url_refused", coroutine)
        assert [fault.path for fault in error.errors] == [path]
    await fake.jobs.validate(BODY)


async def test_a_trace_id_is_the_bodys_or_the_headers_or_made(fake: FakeBusServicesRig) -> None:
    async def trace(body: dict[str, Any], header: str | None) -> str:
        return (await fake.jobs.submit("ann", body, trace_id=header)).entry.record.job.trace_id

    assert await trace({**BODY, "trace_id": "mine"}, "theirs") == "mine"
    assert await trace(BODY, "theirs" * 100) == ("theirs" * 100)[:TRACE_ID_LIMIT_CHARS]
    made = {await trace(BODY, None), await trace(BODY, "")}
    assert [len(each) for each in made] == [32, 32]


def test_a_deadline_is_after_the_submit_and_after_the_start() -> None:
    start, moment = START + timedelta(hours=1), timedelta(microseconds=1)
    for deadline, not_before in ((START, None), (START, START - moment), (start, start), (start - moment, start)):
        with pytest.raises(ProblemError) as caught:
            _check_times(not_before, deadline, START)
        assert [fault.path for fault in caught.value.errors] == ["$.deadline"]
    _check_times(None, START + moment, START)
    _check_times(start, start + moment, START)


def test_a_start_may_be_a_hundred_years_away_and_no_longer() -> None:
    latest = START + timedelta(days=36_500)
    _check_times(latest, None, START)
    with pytest.raises(ProblemError, match="input_invalid"):
        _check_times(latest + timedelta(microseconds=1), None, START)


async def test_the_same_input_at_another_endpoint_is_other_work(fake: FakeBusServicesRig) -> None:
    job = replace(await fake.submit(job_id="mine"), endpoint="other")
    history = [VersionedRecord(1, JobRecord(START, e.Submitted(), job))]
    assert not await fake.jobs._admission.is_equivalent(history, BODY)


async def test_a_made_id_has_the_time_of_its_submit_and_is_random_otherwise(fake: FakeBusServicesRig) -> None:
    made = [UUID(fake.jobs._admission.choose_id("ann", None, None)).int for _ in range(64)]
    assert {number >> 80 for number in made} == {int(START.timestamp() * 1000)}
    ever, always = 0, ~0
    for number in made:
        ever, always = ever | number, always & number
    version_and_variant = 0xF << 76 | 0x3 << 62
    assert ever & ~always == (1 << 80) - 1 & ~version_and_variant, "every other bit is 0 in one id and 1 in another"


async def test_a_history_whose_submit_is_too_long_ago_counts_as_a_whole(fake: FakeBusServicesRig) -> None:
    """The broker keeps the last events of a job; its inputs are in all of them."""
    job = await fake.submit()
    changed = replace(job, input={"text": "other", "seconds": 0})
    history = [
        VersionedRecord(number, JobRecord(START, e.Queued(), each)) for number, each in enumerate((job, changed), 1)
    ]
    admission = fake.jobs._admission
    assert await admission.is_equivalent(history, BODY)
    assert not await admission.is_equivalent(history[1:], BODY)
    resubmitted = [history[0], VersionedRecord(2, JobRecord(START, e.Submitted(), changed))]
    assert not await admission.is_equivalent(resubmitted, BODY)
