"""The checker against evidence that breaks one promise at a time: it reports this one and no other."""

import pytest
from msgspec.structs import replace

from schemas.job import Status
from tests.chaos.checker import RULES, check
from tests.chaos.evidence import (
    ContainerRunTimes,
    Evidence,
    HostOutage,
    JobRevision,
    JobShown,
    OutputDownloaded,
    StreamClosed,
    StreamMessage,
    SubmitAccepted,
)

DIGEST = "ab" * 32
OTHER = "cd" * 32

SUBMITTED = JobRevision(1, "submitted", Status.QUEUED, 1, 0)
STARTED = JobRevision(2, "started", Status.RUNNING, 1, 1)
FAILED = JobRevision(3, "failed", Status.FAILED, 1, 1)
RETRIED = JobRevision(4, "retried", Status.QUEUED, 2, 0)
AGAIN = JobRevision(5, "started", Status.RUNNING, 2, 1)
SUCCEEDED = JobRevision(6, "succeeded", Status.SUCCEEDED, 2, 1)
STATE = (SUBMITTED, STARTED, FAILED, RETRIED, AGAIN, SUCCEEDED)


def state_message(sequence: int, of: JobRevision, stream: str = "first", epoch: int = 7) -> StreamMessage:
    return StreamMessage(
        stream, f"{epoch}-{sequence}-{of.revision}", "state", "j", of.round, of.attempt, of.revision, of.status
    )


def note_message(sequence: int, of: JobRevision, kind: str = "progress", stream: str = "first") -> StreamMessage:
    return StreamMessage(stream, f"7-{sequence}-{of.revision}", kind, "j", of.round, of.attempt)


def read(of: JobRevision) -> JobShown:
    return JobShown("ann", "j", of.revision, of.status, of.round)


GOOD = Evidence(
    seen=(
        SubmitAccepted("ann", "key", "j"),
        SubmitAccepted("ann", "key", "j"),
        read(SUBMITTED),
        state_message(1, SUBMITTED),
        state_message(2, STARTED),
        note_message(4, STARTED),
        note_message(4, STARTED, "log"),
        state_message(5, FAILED),
        note_message(6, STARTED, "log"),
        StreamClosed("first"),
        read(FAILED),
        read(RETRIED),
        state_message(7, RETRIED, "second"),
        state_message(1, AGAIN, "second", epoch=8),
        state_message(2, SUCCEEDED, "second", epoch=8),
        StreamClosed("second"),
        OutputDownloaded("j", "result.bin", DIGEST, DIGEST, DIGEST),
    ),
    state={"j": STATE},
    runs=(ContainerRunTimes("gpu-1", "j", 1, 1, 10.0, 11.0), ContainerRunTimes("gpu-1", "j", 2, 1, 12.0, 13.0)),
)


def test_evidence_of_a_good_run_breaks_nothing():
    assert check(GOOD) == []


def without(*gone: object) -> Evidence:
    return replace(GOOD, seen=tuple(one for one in GOOD.seen if one not in gone))


def also(*more: object) -> Evidence:
    return replace(GOOD, seen=GOOD.seen + more)


def recorded(*revisions: JobRevision) -> Evidence:
    """Return evidence of STATE alone, without any reader."""
    return Evidence(seen=(SubmitAccepted("ann", "key", "j"),), state={"j": revisions})


def ran(*runs: ContainerRunTimes) -> Evidence:
    return replace(GOOD, runs=runs)


ZOMBIE, SECOND = ContainerRunTimes("cut", "j", 1, 1, 10.0, 50.0), ContainerRunTimes("other", "j", 1, 2, 45.0, 60.0)

BROKEN = {
    "accepted_jobs_end": [
        recorded(),
        recorded(SUBMITTED),
        recorded(SUBMITTED, STARTED),
        recorded(SUBMITTED, STARTED, FAILED, RETRIED),
    ],
    "rounds_end_once": [
        recorded(SUBMITTED, STARTED, FAILED, replace(FAILED, revision=4)),
        recorded(SUBMITTED, STARTED, FAILED, replace(SUCCEEDED, round=1)),
        recorded(SUBMITTED, STARTED, replace(SUCCEEDED, round=2)),
        recorded(SUBMITTED, STARTED, RETRIED, AGAIN, SUCCEEDED),
        recorded(SUBMITTED, FAILED, replace(RETRIED, round=1), SUCCEEDED),
    ],
    "streams_end_with_the_end": [
        without(StreamClosed("second")),
        without(state_message(2, SUCCEEDED, "second", epoch=8)),
        also(note_message(8, replace(STARTED, attempt=2), "log")),
        also(note_message(8, replace(STARTED, attempt=2))),
    ],
    "orders_hold": [
        also(read(STARTED)),
        replace(GOOD, seen=(*GOOD.seen[:7], note_message(4, STARTED, "log"), *GOOD.seen[7:])),
        replace(GOOD, seen=(*GOOD.seen[:7], note_message(3, STARTED), *GOOD.seen[7:])),
        replace(GOOD, seen=(*GOOD.seen[:5], state_message(3, STARTED), *GOOD.seen[5:])),
    ],
    "readers_agree_with_state": [
        also(replace(read(SUCCEEDED), revision=9)),
        also(replace(read(SUCCEEDED), status=Status.FAILED)),
        replace(GOOD, seen=(*GOOD.seen[:4], state_message(2, replace(STARTED, status=Status.QUEUED)), *GOOD.seen[5:])),
    ],
    "names_are_one_job": [
        replace(also(SubmitAccepted("ann", "key", "k")), state={"j": STATE, "k": STATE}),
        also(SubmitAccepted("ann", "other key", "j")),
        replace(GOOD, state={"j": STATE, "k": STATE}),
    ],
    "attempts_do_not_overlap": [
        ran(ZOMBIE, SECOND),
        ran(SECOND, ZOMBIE),
        ran(ContainerRunTimes("gpu-1", "j", 1, 1, 10.0, 12.5), ContainerRunTimes("gpu-1", "j", 2, 1, 12.0, 13.0)),
        replace(ran(ZOMBIE, SECOND), cuts=(HostOutage("other", 40.0, 70.0),)),
        replace(ran(ZOMBIE, SECOND), cuts=(HostOutage("cut", 12.0, 40.0),)),
    ],
    "bytes_are_right": [
        also(OutputDownloaded("j", "result.bin", DIGEST, OTHER, DIGEST)),
        also(OutputDownloaded("j", "result.bin", OTHER, OTHER, DIGEST)),
        also(OutputDownloaded("j", "result.bin", OTHER, DIGEST, DIGEST)),
    ],
    "nothing_is_left": [replace(GOOD, left=("a container",))],
}


def test_every_rule_has_evidence_that_breaks_it():
    assert BROKEN.keys() == RULES.keys()


@pytest.mark.parametrize(("rule", "evidence"), [(rule, one) for rule, several in BROKEN.items() for one in several])
def test_what_breaks_a_promise_is_caught_by_its_rule_and_no_other(rule: str, evidence: Evidence):
    assert {violation.rule for violation in check(evidence)} == {rule}


def test_a_host_that_was_cut_off_may_run_a_job_beside_its_successor():
    assert check(replace(ran(ZOMBIE, SECOND), cuts=(HostOutage("cut", 12.0, 48.0),))) == []
    assert check(ran(replace(ZOMBIE, last=44.0), SECOND)) == []
