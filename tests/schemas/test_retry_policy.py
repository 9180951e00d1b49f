"""The failure table by hand, and who decides between another attempt and the end."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import AttemptReleased, Failed
from schemas.job import Blame, Policy, Status
from schemas.lifecycle import (
    DRAINED_CODE,
    FAILURES,
    FREE_RELEASE_LIMIT,
    JITTERED_BACKOFF_LIMIT,
    FailureClass,
    RetryRule,
    apply_event,
    classify_failure,
    make_job_failure,
    outcome_after_failure,
    retry_backoff,
)
from tests.support.schema_samples import LATER, NOW, make_job

BY_HAND = """
client never   bad_job bad_input unreadable_video unreadable_audio no_face multiple_faces input_too_large
client never   input_fetch_failed asset_gone secret_missing disk_exceeded
image  counted internal output_missing output_invalid model_load_failed stalled
image  never   output_too_large execution_timeout module_missing
image  once    out_of_memory
gpu    free    gpu_lost gpu_unhealthy gpu_unsupported
gpu    counted cuda_oom
gpu    never   gpu_fault_repeated
host   free    host_lost engine_error image_missing disk_full drained
host   never   host_fault_repeated
"""
SPELLED = {code: (row[0], row[1]) for row in map(str.split, BY_HAND.split("\n")) if row for code in row[2:]}


NOT_RETRYABLE = {
    "bad_job",
    "bad_input",
    "unreadable_video",
    "unreadable_audio",
    "no_face",
    "multiple_faces",
    "input_too_large",
    "disk_exceeded",
    "output_too_large",
    "module_missing",
    "execution_timeout",
}


def decide(subject, code, row=None, jitter=0.5):
    return outcome_after_failure(subject, code, "why", row or FAILURES[code], at=NOW, jitter=jitter)


def test_the_table_is_as_the_protocol_says():
    assert {code: (row.blame.value, row.retry.value) for code, row in FAILURES.items()} == SPELLED


@pytest.mark.parametrize("code", [code for code, (_, retry) in SPELLED.items() if retry == "never"])
def test_what_is_never_retried_ends_at_once(code):
    assert decide(make_job(Status.RUNNING), code).error.code == code


@pytest.mark.parametrize("code", [code for code, (_, retry) in SPELLED.items() if retry == "counted"])
def test_counted_failures_are_tried_max_attempts_times(code):
    first = decide(make_job(Status.RUNNING, policy=Policy(max_attempts=2)), code)
    last = decide(make_job(Status.RUNNING, policy=Policy(max_attempts=2), charged_attempts=1), code)
    assert isinstance(first, AttemptReleased)
    assert first.charged
    assert last.error.code == code


def test_memory_gets_a_retry_only_if_no_earlier_attempt_was_counted():
    generous = Policy(max_attempts=9)
    assert isinstance(decide(make_job(Status.RUNNING, policy=Policy(max_attempts=1)), "out_of_memory"), Failed)
    assert isinstance(decide(make_job(Status.RUNNING, policy=generous), "out_of_memory"), AttemptReleased)
    assert isinstance(decide(make_job(Status.RUNNING, policy=generous, charged_attempts=1), "out_of_memory"), Failed)


def test_gpu_faults_are_free_three_times():
    assert isinstance(
        decide(make_job(Status.RUNNING, free_releases={"gpu_lost": 2}), "gpu_unhealthy"),
        AttemptReleased,
    )
    ended = decide(make_job(Status.RUNNING, free_releases={"gpu_lost": 2, "gpu_unhealthy": 1}), "gpu_lost")
    assert (ended.error.code, ended.error.blame) == ("gpu_fault_repeated", Blame.GPU)
    assert isinstance(
        decide(make_job(Status.RUNNING, free_releases={"gpu_lost": 3}), "host_lost"),
        AttemptReleased,
    )


def test_releases_for_other_reasons_leave_a_gpu_fault_its_own():
    """An image's own code may stand among the releases: it has no row."""
    subject = make_job(Status.RUNNING, free_releases={"host_lost": 3, DRAINED_CODE: 3, "too_dark": 3})
    assert isinstance(decide(subject, "gpu_lost"), AttemptReleased)


def test_ten_free_releases_in_all():
    ended = decide(make_job(Status.RUNNING, free_releases={"host_lost": 7, DRAINED_CODE: 3}), "engine_error")
    assert (ended.error.code, ended.error.blame) == ("host_fault_repeated", Blame.HOST)


def test_a_retry_by_the_owner_may_help_unless_the_request_itself_is_at_fault():
    assert {code for code in FAILURES if not make_job_failure(code, "why").retryable} == NOT_RETRYABLE


@pytest.mark.parametrize(
    ("code", "row", "retryable"),
    [
        ("bad_input", FAILURES["bad_input"], False),
        ("internal", FAILURES["internal"], True),
        ("too_dark", FailureClass(Blame.CLIENT, RetryRule.NEVER), False),
        ("too_dark", FailureClass(Blame.IMAGE, RetryRule.CHARGED), True),
    ],
)
def test_a_job_that_ends_says_whether_a_retry_may_help(code: str, row: FailureClass, retryable: bool):
    ended = decide(make_job(Status.RUNNING, policy=Policy(max_attempts=1)), code, row)
    assert (ended.error.code, ended.error.blame, ended.error.retryable) == (code, row.blame, retryable)


def test_a_job_whose_free_releases_are_used_up_may_be_retried():
    ended = decide(make_job(Status.RUNNING, free_releases={"host_lost": FREE_RELEASE_LIMIT}), "engine_error")
    assert (ended.error.code, ended.error.retryable) == ("host_fault_repeated", True)


def test_a_drain_waits_no_time_and_a_fault_does():
    assert decide(make_job(Status.RUNNING), DRAINED_CODE).not_before is None
    assert decide(make_job(Status.RUNNING), "host_lost").not_before is None
    assert decide(make_job(Status.RUNNING), "engine_error").not_before > NOW


def test_an_images_own_code_takes_the_class_of_its_exit():
    own = classify_failure("too_dark", FailureClass(Blame.CLIENT, RetryRule.NEVER))
    ended = decide(make_job(Status.RUNNING), "too_dark", own)
    assert (ended.error.code, ended.error.blame) == ("too_dark", Blame.CLIENT)


@pytest.mark.parametrize(
    ("tries", "jitter", "delay_s"),
    [(0, 0.0, 2.0), (1, 0.0, 4.0), (0, 0.5, 3.0), (7, 0.0, 256.0), (8, 0.0, 300.0), (99, 0.5, 450.0)],
)
def test_the_backoff_by_hand(tries, jitter, delay_s):
    assert retry_backoff(tries, jitter) == timedelta(seconds=delay_s)


def test_no_backoff_ends_after_its_limit():
    assert timedelta(seconds=599) < retry_backoff(10_000, 0.999) < JITTERED_BACKOFF_LIMIT == timedelta(seconds=600)


@pytest.mark.parametrize(
    ("code", "before", "delay_s"),
    [
        ("internal", {}, 3.0),
        ("internal", {"charged_attempts": 1, "free_releases": {"gpu_lost": 2}}, 6.0),
        ("gpu_lost", {"charged_attempts": 1}, 3.0),
        ("gpu_lost", {"charged_attempts": 1, "free_releases": {"gpu_lost": 1, "host_lost": 1}}, 12.0),
    ],
)
def test_a_release_waits_longer_after_each_of_its_kind(code, before, delay_s):
    released = decide(make_job(Status.RUNNING, policy=Policy(max_attempts=9), **before), code, jitter=0.5)
    assert released.not_before == NOW + timedelta(seconds=delay_s)


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_grows_and_is_bounded(tries, jitter):
    assert 2 <= retry_backoff(tries, jitter).total_seconds() <= 600
    assert retry_backoff(tries + 1, jitter) >= retry_backoff(tries, jitter)


@given(
    st.lists(
        st.sampled_from([c for c in FAILURES if c not in {"gpu_fault_repeated", "host_fault_repeated"}]),
        min_size=40,
        max_size=40,
    )
)
def test_no_job_is_tried_for_ever(codes):
    subject = make_job(Status.RUNNING)
    for starts, code in enumerate(codes, 1):
        decided = decide(subject, code)
        after = apply_event(subject, decided, LATER)
        if isinstance(decided, Failed):
            assert starts <= FREE_RELEASE_LIMIT + subject.policy.max_attempts
            return
        assert after.status is Status.QUEUED
        subject = make_job(Status.RUNNING, charged_attempts=after.charged_attempts, free_releases=after.free_releases)
    pytest.fail("forty attempts and no end")
