"""The failure table by hand, and who decides between another attempt and the end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import Failed, Released
from schemas.failures import DRAINED, FAILURES, FREE_IN_ALL, FREE_OF_GPU, Class, Retry, backoff, classify, settle
from schemas.job import Policy
from schemas.lifecycle import apply
from schemas.words import Blame, Status
from tests.schemas.make import LATER, NOW, job

BY_HAND = """
client never   bad_job bad_input unreadable_video unreadable_audio no_face multiple_faces input_too_large
client never   input_fetch_failed asset_gone disk_exceeded
image  counted internal output_missing output_invalid model_load_failed stalled
image  never   output_too_large execution_timeout
image  once    out_of_memory
gpu    free    gpu_lost gpu_unhealthy gpu_unsupported
gpu    counted cuda_oom
gpu    never   gpu_fault_repeated
host   free    host_lost engine_error image_missing disk_full drained
host   never   host_fault_repeated
"""
SPELLED = {code: (row[0], row[1]) for row in map(str.split, BY_HAND.split("\n")) if row for code in row[2:]}


def decide(subject, code, row=None):
    return settle(subject, code, "why", row or FAILURES[code], at=NOW, jitter=0.5)


def test_the_table_is_as_the_protocol_says():
    assert {code: (row.blame.value, row.retry.value) for code, row in FAILURES.items()} == SPELLED


@pytest.mark.parametrize("code", [code for code, (_, retry) in SPELLED.items() if retry == "never"])
def test_what_is_never_retried_ends_at_once(code):
    assert decide(job(Status.RUNNING), code).error.code == code


@pytest.mark.parametrize("code", [code for code, (_, retry) in SPELLED.items() if retry == "counted"])
def test_counted_failures_are_tried_max_attempts_times(code):
    first = decide(job(Status.RUNNING, policy=Policy(max_attempts=2)), code)
    last = decide(job(Status.RUNNING, policy=Policy(max_attempts=2), charged=1), code)
    assert isinstance(first, Released)
    assert first.charged
    assert last.error.code == code


def test_memory_gets_one_retry_however_many_attempts_are_left():
    generous = Policy(max_attempts=9)
    assert isinstance(decide(job(Status.RUNNING, policy=generous), "out_of_memory"), Released)
    assert isinstance(decide(job(Status.RUNNING, policy=generous, charged=1), "out_of_memory"), Failed)


def test_gpu_faults_are_free_three_times():
    assert isinstance(decide(job(Status.RUNNING, releases={"gpu_lost": FREE_OF_GPU - 1}), "gpu_unhealthy"), Released)
    ended = decide(job(Status.RUNNING, releases={"gpu_lost": 2, "gpu_unhealthy": 1}), "gpu_lost")
    assert (ended.error.code, ended.error.blame) == ("gpu_fault_repeated", Blame.GPU)
    assert isinstance(decide(job(Status.RUNNING, releases={"gpu_lost": FREE_OF_GPU}), "host_lost"), Released)


def test_ten_free_releases_in_all():
    ended = decide(job(Status.RUNNING, releases={"host_lost": 7, DRAINED: 3}), "engine_error")
    assert (ended.error.code, ended.error.blame) == ("host_fault_repeated", Blame.HOST)


def test_a_drain_waits_no_time_and_a_fault_does():
    assert decide(job(Status.RUNNING), DRAINED).not_before is None
    assert decide(job(Status.RUNNING), "host_lost").not_before is None
    assert decide(job(Status.RUNNING), "engine_error").not_before > NOW


def test_an_images_own_code_takes_the_class_of_its_exit():
    own = classify("too_dark", Class(Blame.CLIENT, Retry.NEVER))
    ended = decide(job(Status.RUNNING), "too_dark", own)
    assert (ended.error.code, ended.error.blame) == ("too_dark", Blame.CLIENT)


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_grows_and_is_bounded(tries, jitter):
    assert 2 <= backoff(tries, jitter).total_seconds() <= 600
    assert backoff(tries + 1, jitter) >= backoff(tries, jitter)


@given(
    st.lists(
        st.sampled_from([c for c in FAILURES if c not in {"gpu_fault_repeated", "host_fault_repeated"}]),
        min_size=40,
        max_size=40,
    )
)
def test_no_job_is_tried_for_ever(codes):
    subject = job(Status.RUNNING)
    for starts, code in enumerate(codes, 1):
        decided = decide(subject, code)
        after = apply(subject, decided, LATER)
        if isinstance(decided, Failed):
            assert starts <= FREE_IN_ALL + subject.policy.max_attempts
            return
        assert after.status is Status.QUEUED
        subject = job(Status.RUNNING, charged=after.charged, releases=after.releases)
    pytest.fail("forty attempts and no end")
