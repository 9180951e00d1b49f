"""The promises of docs/promises.md as a table of rules over evidence; each rule yields its violations in words."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations, pairwise
from typing import TypeVar

from msgspec import Struct

from schemas.job import FINAL_STATUSES
from tests.chaos.evidence import (
    ContainerRunTimes,
    Evidence,
    JobShown,
    OutputDownloaded,
    StreamClosed,
    StreamMessage,
    SubmitAccepted,
)

S = TypeVar("S")


class Violation(Struct, frozen=True):
    """A broken promise, and how it was broken."""

    rule: str
    what: str


def _of(kind: type[S], evidence: Evidence) -> list[S]:
    return [one for one in evidence.seen if isinstance(one, kind)]


def _streams(evidence: Evidence) -> dict[str, list[StreamMessage]]:
    streams = defaultdict(list)
    for message in _of(StreamMessage, evidence):
        streams[message.stream].append(message)
    return streams


def accepted_jobs_end(evidence: Evidence) -> Iterator[str]:
    """Every job that was answered 202 is in STATE, and its last event is an end."""
    for job_id in sorted({accepted.job_id for accepted in _of(SubmitAccepted, evidence)}):
        revisions = evidence.state.get(job_id)
        if not revisions:
            yield f"{job_id} was accepted and is not in STATE"
        elif revisions[-1].status not in FINAL_STATUSES:
            yield f"{job_id} was accepted and is {revisions[-1].status} for ever"


def rounds_end_once(evidence: Evidence) -> Iterator[str]:
    """In STATE only the owner's retry follows an end, and it begins the next round."""
    for job_id, revisions in evidence.state.items():
        for before, after in pairwise(revisions):
            begins = after.event == "retried" and after.round == before.round + 1
            if (before.status in FINAL_STATUSES) != begins or (not begins and after.round != before.round):
                yield f"{job_id}: {after.event} (round {after.round}) after {before.status} (round {before.round})"


def streams_end_with_the_end(evidence: Evidence) -> Iterator[str]:
    """After a final state a stream has no other state of that round and nothing of a later attempt, and then it closes.

    The attempt's last log lines may follow its final state: the order between the two is not promised.
    """
    closed = {one.stream for one in _of(StreamClosed, evidence)}
    for stream, messages in _streams(evidence).items():
        ends = [index for index, one in enumerate(messages) if one.final]
        for index in ends:
            end = messages[index]
            for one in messages[index + 1 :]:
                if one.round == end.round and (one.kind == "state" or one.attempt > end.attempt):
                    yield f"{stream}: {one.kind} {one.id} behind the end {end.id} of round {end.round}"
        if stream in closed and not ends:
            yield f"{stream} was closed without an end"
        if ends and stream not in closed:
            yield f"{stream} was told the end and not closed"


def orders_hold(evidence: Evidence) -> Iterator[str]:
    """A reader never sees revisions, or ids within an epoch, go back, and no message twice."""
    shown: dict[tuple[str, str], int] = {}
    for read in _of(JobShown, evidence):
        last = shown.get((read.client, read.job_id), 0)
        if read.revision < last:
            yield f"{read.client}: {read.job_id} went back from revision {last} to {read.revision}"
        shown[read.client, read.job_id] = max(last, read.revision)
    for stream, messages in _streams(evidence).items():
        for before, after in pairwise(one for one in messages if one.kind != "notice"):
            if before.epoch == after.epoch and after.sequence < before.sequence:
                yield f"{stream}: id {after.id} behind {before.id}"
            if (before.kind, before.id) == (after.kind, after.id):
                yield f"{stream}: {after.kind} {after.id} twice"
        revisions = [one.revision for one in messages if one.revision is not None]
        for earlier, later in pairwise(revisions):
            if later <= earlier:
                yield f"{stream}: revision {later} behind {earlier}"


def readers_agree_with_state(evidence: Evidence) -> Iterator[str]:
    """A revision that was shown is the one in STATE, and an end that was shown stays."""
    for one in evidence.seen:
        if not isinstance(one, JobShown | StreamMessage) or one.revision is None:
            continue
        kept = evidence.state.get(one.job_id, ())
        held = {revision.revision: revision for revision in kept}.get(one.revision)
        if held is None and kept and one.revision > kept[0].revision:
            yield f"{one.job_id}: revision {one.revision} was shown and is not in STATE"
        elif held is not None and (held.status, held.round) != (one.status, one.round):
            yield f"{one.job_id}: revision {one.revision} was shown as {one.status} and is {held.status}"


def names_are_one_job(evidence: Evidence) -> Iterator[str]:
    """One name (idempotency key or id) is one job, however often it was sent; STATE has no other job."""
    jobs, names = defaultdict(set), defaultdict(set)
    for accepted in _of(SubmitAccepted, evidence):
        jobs[accepted.name].add(accepted.job_id)
        names[accepted.job_id].add(accepted.name)
    yield from (f"name {name} made {len(made)} jobs: {sorted(made)}" for name, made in jobs.items() if len(made) > 1)
    yield from (f"{job_id} has names {sorted(given)}" for job_id, given in names.items() if len(given) > 1)
    yield from (f"{job_id} is in STATE and nobody was told" for job_id in sorted(evidence.state.keys() - names.keys()))


def attempts_do_not_overlap(evidence: Evidence) -> Iterator[str]:
    """Two containers of a job never run at once, except while the host of one of them is cut off."""
    runs = defaultdict(list)
    for run in evidence.runs:
        runs[run.job_id].append(run)
    for job_id, several in runs.items():
        for one, other in combinations(several, 2):
            if one.first <= other.last and other.first <= one.last and not _excused(one, other, evidence):
                yield (
                    f"{job_id}: round {one.round} attempt {one.attempt} on {one.host} and round {other.round} attempt"
                    f" {other.attempt} on {other.host} ran at once"
                )


def _excused(one: ContainerRunTimes, other: ContainerRunTimes, evidence: Evidence) -> bool:
    since = max(one.first, other.first)
    earlier = min(one, other, key=lambda run: run.first)
    return any(cut.host == earlier.host and cut.since <= since <= cut.until for cut in evidence.cuts)


def bytes_are_right(evidence: Evidence) -> Iterator[str]:
    """A download has the digest that the job names, and is what the job should have made."""
    for file in _of(OutputDownloaded, evidence):
        if not file.got == file.promised == file.right:
            yield f"{file.job_id}: {file.name} is {file.got[:9]}, promised {file.promised[:9]}, right {file.right[:9]}"


def nothing_is_left(evidence: Evidence) -> Iterator[str]:
    """At the end no container, process, file, consumer or message of an ended job is left."""
    yield from evidence.left


RULES: Mapping[str, Callable[[Evidence], Iterator[str]]] = {
    rule.__name__: rule
    for rule in (
        accepted_jobs_end,
        rounds_end_once,
        streams_end_with_the_end,
        orders_hold,
        readers_agree_with_state,
        names_are_one_job,
        attempts_do_not_overlap,
        bytes_are_right,
        nothing_is_left,
    )
}


def check(evidence: Evidence) -> list[Violation]:
    """Return every violation of every rule."""
    return [Violation(name, what) for name, rule in RULES.items() for what in rule(evidence)]
