"""The index compared with a brute-force search of the same records; its pages, waits and repair."""

import itertools
from collections import Counter
from datetime import timedelta
from pathlib import Path
from sqlite3 import OperationalError
from tempfile import TemporaryDirectory

import anyio
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bus.interface import RecordChange, VersionedRecord
from edge.index import sqlite as sql
from edge.index.index import JobCountKey, JobIndex
from edge.index.rows import JobFilters, QueueKey, input_digests
from schemas import events as e
from schemas.job import FINAL_STATUSES, Claim, Job, JobKey, Output, Priority, Status
from schemas.lifecycle import IllegalTransition, next_record, resubmission_record
from schemas.problems import ProblemError
from tests.support.edge_services import START, EdgeServicesRig

OWNERS = ("ann", "bob")
DIGESTS = ("a" * 64, "b" * 64)
SPAN = 2


class IndexMachine(RuleBasedStateMachine):
    """Random histories of jobs, applied in batches. Each answer is compared with a loop over plain records."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.index = JobIndex(Path(self.folder.name) / "index.db", records=None)  # fed by hand
        self.db = sql.create_database(Path(self.folder.name) / "index.db")
        self.jobs: dict[JobKey, VersionedRecord] = {}
        self.pending: list[RecordChange] = []
        self.revisions = itertools.count(1)
        self.now = START

    def teardown(self) -> None:
        self.db.close()
        self.folder.cleanup()

    def write(self, recorded: e.JobRecord) -> None:
        revision = next(self.revisions)
        self.jobs[recorded.job.key] = VersionedRecord(revision, recorded)
        self.pending.append(RecordChange(revision, recorded.job.key, recorded))

    @rule(
        owner=st.sampled_from(OWNERS),
        number=st.integers(0, 12),
        priority=st.sampled_from(Priority),
        later=st.booleans(),
        digest=st.sampled_from(DIGESTS),
        tag=st.sampled_from("xy"),
    )
    def submit(self, owner: str, number: int, priority: Priority, later: bool, digest: str, tag: str) -> None:
        key = JobKey(owner, f"j{number}")
        there = self.jobs.get(key)
        if there is not None and there.record.job.status not in FINAL_STATUSES:
            return
        self.now += timedelta(seconds=1)
        job = Job(
            id=key.id,
            owner=owner,
            endpoint="echo",
            pool="echo",
            status=Status.SCHEDULED if later else Status.QUEUED,
            request_digest="d",
            input={"files": [{"file": f"sha256:{digest}"}]},
            priority=priority,
            tags={"project": tag},
            not_before=self.now if later else None,
            queued_at=None if later else self.now,
            created_at=self.now,
        )
        recorded = e.JobRecord(self.now, e.Submitted(), job)
        self.write(recorded if there is None else resubmission_record(there.record.job, job))

    @rule(
        which=st.integers(0, 30),
        event=st.sampled_from(
            [
                e.Queued(),
                e.AttemptReleased("host_lost"),
                e.Reprioritised(Priority.NORMAL),
                e.CancelRequested(),
                e.Cancelled(),
                e.Succeeded(Output()),
                e.Retried(),
                e.Started(Claim("h", "i", 1)),
            ]
        ),
    )
    def move(self, which: int, event: e.JobEvent) -> None:
        if not self.jobs:
            return
        entry = sorted(self.jobs.items())[which % len(self.jobs)][1]
        self.now += timedelta(seconds=1)
        try:
            self.write(next_record(entry.record.job, event, self.now))
        except IllegalTransition:
            return

    @rule(which=st.integers(0, 30))
    def delete(self, which: int) -> None:
        if self.jobs:
            key = sorted(self.jobs)[which % len(self.jobs)]
            del self.jobs[key]
            self.pending.append(RecordChange(next(self.revisions), key, None))

    @rule(again=st.booleans())
    def absorb(self, again: bool) -> None:
        batch, self.pending = self.pending, []
        self.index._apply_row_changes(sql.apply_changes(self.db, batch))
        if again:  # opened again at an older revision: known changes are skipped
            assert sql.apply_changes(self.db, [change for change in batch if change.record]) == []

    def settled(self) -> list[Job]:
        self.absorb(False)
        return [entry.record.job for entry in self.jobs.values()]

    @invariant()
    def counts_and_lists_agree(self) -> None:
        jobs = self.settled()
        assert self.index.count_jobs() == Counter(JobCountKey(j.owner, j.endpoint, j.pool, j.status) for j in jobs)
        for owner, status, tag in itertools.product(OWNERS, (None, Status.QUEUED), (None, "x")):
            filters = JobFilters(
                statuses=() if status is None else (status,), tags=() if tag is None else (("project", tag),)
            )
            asked = sql.ListQuery(owner, filters, None, 100)
            expected = [
                job.id
                for job in sorted(jobs, key=lambda job: (job.created_at, job.id), reverse=True)
                if job.owner == owner and status in (None, job.status) and tag in (None, job.tags["project"])
            ]
            assert [entry.record.job.id for entry in sql.list_jobs(self.db, asked)] == expected

    @invariant()
    def lines_and_names_agree(self) -> None:
        jobs = self.settled()
        queued = [job for job in jobs if job.status is Status.QUEUED and job.queued_at]
        for job in queued:
            line = QueueKey(job.owner, job.pool, job.priority)
            own = sorted((j.queued_at, j.id) for j in queued if (j.owner, j.priority) == (job.owner, job.priority))
            assert [p.id for p in sql.queue_head(self.db, line, 100)] == [id_ for _, id_ in own]
            assert self.index.queue_position(job, SPAN) == brute_position(job, queued)
        for owner, digest in itertools.product(OWNERS, DIGESTS):
            living = {
                j.key
                for j in jobs
                if j.owner == owner and digest in input_digests(j) and j.status not in FINAL_STATUSES
            }
            assert set(sql.find_jobs_with_asset(self.db, digest, owner, set(Status) - FINAL_STATUSES)) == living


def brute_position(job: Job, queued: list[Job]) -> int:
    """Count the jobs ahead by the docstring of `QueueRanks.count_ahead`."""
    order = list(Priority)
    higher = sum(order.index(other.priority) < order.index(job.priority) for other in queued)
    same = [other for other in queued if other.priority is job.priority]
    rank = sum(other.owner == job.owner and other.queued_at < job.queued_at for other in same)
    ahead = higher + rank
    for owner in {other.owner for other in same} - {job.owner}:
        theirs = [other for other in same if other.owner == owner]
        earlier = sum(other.queued_at < job.queued_at for other in theirs)
        ahead += min(earlier, SPAN) if rank < SPAN else min(len(theirs), rank)
    return ahead


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


async def test_keys_and_pools_are_those_of_the_jobs_that_match(edge: EdgeServicesRig) -> None:
    later = (START + timedelta(hours=1)).isoformat()
    jobs = [await edge.submit(text=str(number), not_before=later) for number in range(3)]
    await edge.submit()
    await edge.wait_until_indexed()
    due = int((START + timedelta(hours=2)).timestamp() * 1_000_000)
    matching = await edge.index.find_jobs(sql.DUE, due, 10)
    keys = await edge.index.find_keys(sql.DUE, due, 10)
    assert sorted(keys) == sorted(entry.record.job.key for entry in matching) == sorted(job.key for job in jobs)
    assert len(await edge.index.find_keys(sql.DUE, due, 2)) == 2
    assert await edge.index.count_by_pool(sql.DUE, due, 10) == {"echo": 3}
    assert await edge.index.count_by_pool(sql.DUE, due, 2) == {"echo": 2}
    assert await edge.index.count_by_pool(sql.DUE, 1, 10) == {}


async def test_pages_do_not_shift_when_jobs_arrive(edge: EdgeServicesRig) -> None:
    jobs = [await edge.submit(text=str(number)) for number in range(7)]
    first = await edge.index.list_jobs("ann", JobFilters(), limit=3)
    await edge.submit(text="newer")
    second = await edge.index.list_jobs("ann", JobFilters(), limit=3, cursor=first.next_cursor)
    third = await edge.index.list_jobs("ann", JobFilters(), limit=3, cursor=second.next_cursor)
    seen = [entry.record.job.id for page in (first, second, third) for entry in page.records]
    assert seen == [job.id for job in reversed(jobs)]
    assert third.next_cursor is None


@pytest.mark.parametrize("cursor", ["%", "AAAA", "é", "bm90LWEtY3Vyc29y"])
async def test_a_cursor_of_nobody_is_refused(edge: EdgeServicesRig, cursor: str) -> None:
    with pytest.raises(ProblemError) as caught:
        await edge.index.list_jobs("ann", JobFilters(), cursor=cursor)
    assert caught.value.code == "input_invalid"


async def test_a_list_has_what_its_caller_just_wrote(edge: EdgeServicesRig) -> None:
    for number in range(20):
        job = await edge.submit(text=str(number))
        page = await edge.index.list_jobs("ann", JobFilters(), limit=1)
        assert page.records[0].record.job.id == job.id
    await edge.jobs.cancel(job.key)
    await edge.jobs.delete(job.key)
    ids = [entry.record.job.id for entry in (await edge.index.list_jobs("ann", JobFilters())).records]
    assert job.id not in ids


async def test_a_start_over_a_full_state_gives_the_same(edge: EdgeServicesRig, tmp_path: Path) -> None:
    for number in range(30):
        await edge.submit("ann" if number % 3 else "bob", str(number))
    await edge.finish(await edge.submit())
    await edge.wait_until_indexed()
    again = JobIndex(tmp_path / "again.db", edge.bus.job_store)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(again.run)
        await again.wait_until_caught_up()
        assert again.count_jobs() == edge.index.count_jobs()
        assert await again.list_jobs("ann", JobFilters()) == await edge.index.list_jobs("ann", JobFilters())
        tasks.cancel_scope.cancel()


async def test_a_full_disk_makes_the_index_wait_and_not_the_edge(
    edge: EdgeServicesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.index.index.DISK_RETRY_INTERVAL_S", 0.01)
    monkeypatch.setattr("edge.index.index.CATCH_UP_TIMEOUT_S", 0.5)
    db = edge.index._db
    assert db is not None
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages}")
    jobs = [await edge.submit(text="x" * 60_000) for _ in range(5)]
    assert not await edge.index.wait_for_own_writes("ann")
    record = await edge.jobs.read(jobs[0].key)
    with pytest.raises(OperationalError, match="full"):
        await edge.index._run_exclusive(sql.apply_changes, [RecordChange(record.revision, jobs[0].key, record.record)])
    assert not db.in_transaction
    db.execute("PRAGMA max_page_count = 1000000")
    assert await edge.index.wait_for_own_writes("ann")
    page = await edge.index.list_jobs("ann", JobFilters())
    assert [entry.record.job.id for entry in page.records] == [job.id for job in reversed(jobs)]


async def test_filters_narrow_a_list(edge: EdgeServicesRig) -> None:
    low = await edge.submit(priority="low", tags={"project": "x"})
    done = await edge.finish(await edge.submit(tags={"project": "x", "other": "y"}))
    await edge.submit("bob", tags={"project": "x"})

    async def listed(**filters: object) -> list[str]:
        page = await edge.index.list_jobs("ann", JobFilters(**filters))  # each named by its test
        return [entry.record.job.id for entry in page.records]

    assert await listed(statuses=(Status.SUCCEEDED,)) == [done.id]
    assert await listed(priority=Priority.LOW) == [low.id]
    assert await listed(tags=(("project", "x"),)) == [done.id, low.id]
    assert await listed(tags=(("project", "x"), ("other", "y"))) == [done.id]
    assert await listed(endpoint="nope") == []
