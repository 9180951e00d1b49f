"""The law of a job's life, spelled out by hand, and what every walk through it keeps."""

import typing
from datetime import timedelta
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import events as e
from schemas.job import FINAL_STATUSES, AttemptUsage, Job, JobMetric, Output, PendingUrl, Priority, Status
from schemas.lifecycle import (
    TRANSITIONS,
    TRANSITIONS_WITHOUT_INPUT,
    IllegalTransition,
    apply_event,
    next_record,
    resubmission_record,
    why_illegal,
)
from tests.support.schema_samples import LATER, NOW, make_claim, make_event, make_failure, make_job

S = Status
BY_HAND = {
    # event: scheduled, queued, running, cancelling, succeeded, failed, cancelled, expired
    e.Submitted: (None, None, None, None, None, None, None, None),
    e.InputArrived: (S.SCHEDULED, None, None, None, None, None, None, None),
    e.Queued: (S.QUEUED, None, None, None, None, None, None, None),
    e.Started: (None, S.RUNNING, None, None, None, None, None, None),
    e.Adopted: (None, S.RUNNING, S.RUNNING, S.CANCELLING, None, None, None, None),
    e.AttemptReleased: (None, None, S.QUEUED, S.CANCELLED, None, None, None, None),
    e.Reprioritised: (S.SCHEDULED, S.QUEUED, None, None, None, None, None, None),
    e.CancelRequested: (None, None, S.CANCELLING, None, None, None, None, None),
    e.Cancelled: (S.CANCELLED, S.CANCELLED, None, S.CANCELLED, None, None, None, None),
    e.Succeeded: (None, None, S.SUCCEEDED, S.SUCCEEDED, None, None, None, None),
    e.Failed: (S.FAILED, S.FAILED, S.FAILED, S.FAILED, None, None, None, None),
    e.Expired: (S.EXPIRED, S.EXPIRED, None, None, None, None, None, None),
    e.Retried: (None, None, None, None, None, S.QUEUED, S.QUEUED, S.QUEUED),
}
FILE = "a" * 64
URL = "https://example.com/a.mp4"
KINDS = typing.get_args(e.JobEvent)


def test_the_table_by_hand_names_every_event_once():
    assert set(BY_HAND) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("column", "status"), list(enumerate(Status)), ids=[status.value for status in Status])
def test_every_step_is_as_the_design_says(kind, column, status):
    # A queued job that can be adopted has a last claim of its own, one that is supplied lacks something; the others
    # are as they come.
    special = {e.Adopted: {"attempt": 1, "claim": make_claim(1)}, e.InputArrived: {"missing": (FILE,)}}
    subject = make_job(status, **special.get(kind, {}))
    expected = BY_HAND[kind][column]
    if expected is None:
        with pytest.raises(IllegalTransition):
            apply_event(subject, make_event(kind, subject), LATER)
    else:
        assert apply_event(subject, make_event(kind, subject), LATER).status is expected
    assert TRANSITIONS.get(kind, {}).get(status) is expected


@pytest.mark.parametrize(
    ("subject", "illegal"),
    [
        (make_job(S.QUEUED), e.Started(make_claim(2))),
        (make_job(S.RUNNING), e.Adopted(make_claim(1, host="other"), 1)),
        (make_job(S.RUNNING), e.Adopted(make_claim(2), 1)),
        (make_job(S.RUNNING), e.Adopted(make_claim(1), 2)),
        (make_job(S.QUEUED), e.Adopted(make_claim(1), 1)),
        (make_job(S.QUEUED, attempt=1), e.Expired("deadline")),
        (make_job(S.QUEUED), e.Failed(make_failure("internal"))),
    ],
    ids=[
        "an attempt is skipped",
        "another host adopts",
        "another attempt is adopted",
        "another round is adopted",
        "what was never claimed is adopted",
        "it was tried, so it does not expire",
        "a queued job does not fail of itself",
    ],
)
def test_guards_refuse(subject, illegal):
    with pytest.raises(IllegalTransition, match=type(illegal).__name__):
        apply_event(subject, illegal, LATER)


def lacking(status: Status) -> Job:
    """A job with one file to be uploaded, and one URL in two places that a third place only looks like."""
    places = ("$.clips[1].video", "$.cover")
    given = {"clips": [{"video": URL}, {"video": URL}], "cover": URL, "text": URL}
    return make_job(status, input=given, missing=(FILE,), pending_urls=tuple(PendingUrl(path, URL) for path in places))


@pytest.mark.parametrize("ended", [S.FAILED, S.CANCELLED, S.EXPIRED])
def test_a_job_that_lacks_input_is_scheduled_again_by_a_retry(ended):
    again = apply_event(lacking(ended), e.Retried(), LATER)
    assert (again.status, again.queued_at, again.round) == (S.SCHEDULED, None, 2)
    assert (again.missing, again.pending_urls) == (lacking(ended).missing, lacking(ended).pending_urls)


@pytest.mark.parametrize("status", list(Status))
def test_another_submit_replaces_only_what_has_ended_and_begins_a_round(status):
    there = make_job(status, round=3, attempt=2, input={"text": "old"}, error=make_failure(), tags={"of": "the old"})
    admitted = make_job(S.QUEUED, input={"text": "new"}, created_at=LATER, queued_at=LATER)
    if status not in FINAL_STATUSES:
        with pytest.raises(IllegalTransition, match="Submitted"):
            resubmission_record(there, admitted)
        return
    recorded = resubmission_record(there, admitted)
    assert (recorded.at, recorded.event) == (LATER, e.Submitted())
    assert recorded.job == make_job(S.QUEUED, round=4, input={"text": "new"}, created_at=LATER, queued_at=LATER)


def test_a_job_is_queued_once_everything_it_lacked_is_there():
    subject = lacking(S.SCHEDULED)
    for supplied in (e.InputArrived(FILE), e.InputArrived("b" * 64, URL)):
        with pytest.raises(IllegalTransition, match="not complete"):
            apply_event(subject, e.Queued(), LATER)
        subject = apply_event(subject, supplied, LATER)
        with pytest.raises(IllegalTransition, match="does not lack"):
            apply_event(subject, supplied, LATER)
    fetched = f"sha256:{'b' * 64}"
    assert subject.input == {"clips": [{"video": URL}, {"video": fetched}], "cover": fetched, "text": URL}
    assert apply_event(subject, e.Queued(), LATER).status is S.QUEUED


def test_a_free_release_is_counted_by_code_and_costs_no_attempt():
    after = apply_event(make_job(S.RUNNING), e.AttemptReleased("gpu_lost", not_before=LATER), LATER)
    assert (after.charged_attempts, after.free_releases, after.backoff_until) == (0, {"gpu_lost": 1}, LATER)
    assert after.earliest_start == LATER


def test_a_charged_release_counts_an_attempt_and_the_next_start_ends_the_backoff():
    waiting = apply_event(make_job(S.RUNNING), e.AttemptReleased("internal", charged=True, not_before=LATER), LATER)
    running = apply_event(waiting, e.Started(make_claim(2)), LATER)
    assert (waiting.charged_attempts, waiting.free_releases) == (1, {})
    assert (running.attempt, running.backoff_until, running.charged_attempts) == (2, None, 1)


def test_retry_starts_a_new_round_from_nothing_but_the_request():
    failed = apply_event(
        make_job(S.RUNNING, charged_attempts=2, free_releases={"gpu_lost": 1}, deadline=LATER, tags={"a": "b"}),
        e.Failed(make_failure(), usage=AttemptUsage(run_s=3.0), log="l" * 64, metrics=(JobMetric("fps", 1.0),)),
        NOW,
    )
    again = apply_event(failed, e.Retried(), LATER)
    assert (again.round, again.attempt, again.charged_attempts, again.free_releases, again.claim) == (2, 0, 0, {}, None)
    assert (failed.metrics, again.metrics) == ((JobMetric("fps", 1.0),), ())
    assert (again.error, again.log, again.usage, again.started_at, again.finished_at) == (
        None,
        None,
        AttemptUsage(),
        None,
        None,
    )
    assert (again.input, again.deadline, again.tags, again.created_at) == (failed.input, LATER, {"a": "b"}, NOW)
    assert again.queued_at == again.retried_at == LATER


def test_success_keeps_output_usage_and_log():
    done = apply_event(
        make_job(S.RUNNING), e.Succeeded(Output(data={"text": "hi"}), AttemptUsage(run_s=1.5), "f" * 64), LATER
    )
    assert (done.output.data, done.usage.run_s, done.log, done.finished_at) == ({"text": "hi"}, 1.5, "f" * 64, LATER)


@pytest.mark.parametrize("end", [e.Cancelled(), e.Failed(make_failure())])
def test_an_end_that_says_nothing_of_usage_log_and_metrics_keeps_what_is_recorded(end):
    kept = {"usage": AttemptUsage(run_s=2.0), "log": "f" * 64, "metrics": (JobMetric("fps", 1.0),)}
    done = apply_event(make_job(S.CANCELLING, **kept), end, LATER)
    assert (done.finished_at, done.usage, done.log, done.metrics) == (LATER, *kept.values())


def test_a_release_ends_a_job_that_is_being_cancelled():
    done = apply_event(make_job(S.CANCELLING), e.AttemptReleased("internal", charged=True, not_before=LATER), LATER)
    assert (done.status, done.finished_at) == (S.CANCELLED, LATER)
    assert (done.charged_attempts, done.backoff_until) == (0, None)


def test_a_released_job_waits_in_the_queue_from_then_on():
    assert apply_event(make_job(S.RUNNING, queued_at=NOW), e.AttemptReleased("internal"), LATER).queued_at == LATER


def test_an_illegal_event_says_which_job_and_why():
    with pytest.raises(IllegalTransition) as caught:
        apply_event(make_job(S.QUEUED), e.Started(make_claim(2)), LATER)
    assert str(caught.value) == "Started on queued job ada/j1 round 1: the next attempt is 1"
    assert (caught.value.job, caught.value.event) == (make_job(S.QUEUED), e.Started(make_claim(2)))


def test_reprioritised_moves_the_pointer_to_another_subject():
    moved = apply_event(make_job(S.QUEUED, priority=Priority.LOW), e.Reprioritised(Priority.NORMAL), LATER)
    assert moved.pointer.priority is Priority.NORMAL


class Walk(NamedTuple):
    """A job after some legal events: how many of them adopted it in this round, and how many ended a round."""

    job: Job
    adoptions: int = 0
    ends: int = 0


def legal_kinds(job: Job) -> list[type[e.JobEventBase]]:
    return [kind for kind in KINDS if why_illegal(job, make_event(kind, job)) is None]


def take_step(walk: Walk, kind: type[e.JobEventBase], number: int) -> Walk:
    """Apply an event, and check what every event keeps."""
    before = walk.job
    recorded = next_record(before, make_event(kind, before), NOW + timedelta(seconds=number))
    after = recorded.job
    assert after.round >= before.round
    assert after.round > before.round or after.attempt >= before.attempt
    # A released attempt that its runner adopts may be released once more.
    adoptions = 0 if after.round > before.round else walk.adoptions + (kind is e.Adopted)
    assert after.charged_attempts + sum(after.free_releases.values()) <= after.attempt + adoptions
    assert (after.finished_at is not None) == (after.status in FINAL_STATUSES)
    assert not (before.status in FINAL_STATUSES and after.status in FINAL_STATUSES)
    ends = walk.ends + (after.status in FINAL_STATUSES)
    assert ends <= after.round
    if after.round > before.round:
        assert after.attempt == 0
    assert e.decode_record(e.encode_record(recorded)) == recorded
    return Walk(after, adoptions, ends)


STARTS = [make_job(S.QUEUED), make_job(S.SCHEDULED), make_job(S.SCHEDULED, missing=(FILE,))]


@given(st.data(), st.sampled_from(STARTS))
def test_any_walk_keeps_the_counts_and_ends_each_round_once(data, first):
    walk = Walk(first)
    for number in range(data.draw(st.integers(0, 40))):
        legal = legal_kinds(walk.job)
        if not legal:
            assert walk.job.status is S.SUCCEEDED
            break
        walk = take_step(walk, data.draw(st.sampled_from(legal)), number)


def test_walks_reach_every_step_of_the_tables_and_no_other():
    """Take every legal step from every kind of job that steps lead to, until they lead to no other kind."""
    seen, taken, walks = set(), set(), [Walk(job) for job in STARTS]
    while walks:
        walk = walks.pop()
        job = walk.job
        kind_of_job = (job.status, job.lacks_input, job.attempt > 0, job.claim is not None, job.round > 1)
        if kind_of_job in seen:
            continue
        seen.add(kind_of_job)
        for kind in legal_kinds(job):
            after = take_step(walk, kind, len(seen))
            taken.add((kind, job.status, after.job.status))
            walks.append(after)
    tables = [*TRANSITIONS.items(), *TRANSITIONS_WITHOUT_INPUT.items()]
    assert taken == {(kind, status, target) for kind, targets in tables for status, target in targets.items()}
