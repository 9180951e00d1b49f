"""Partitions, lost claims and redeliveries: a job may run twice after a partition, and never ends twice."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from bus.interface import BrokerUnreachable, MessageTooLarge, RevisionConflict, TableRow, VersionedRecord
from runner.execution.durable_state import ClaimLost, FencedJob, record_event
from schemas.events import (
    Adopted,
    AttemptReleased,
    Failed,
    JobEvent,
    JobRecord,
    LogEndMessage,
    LogMessage,
    Retried,
    Started,
    Succeeded,
    encode_record,
)
from schemas.host import HostHeartbeat
from schemas.job import Claim, JobKey, Output, Status
from schemas.lifecycle import next_record
from tests.support.fake_engine import FakeContainer
from tests.support.runner_environment import RunnerEnvironment, wait_with_deadline, write_outputs
from tests.support.schema_samples import make_failure
from tests.support.wait import wait_for


@pytest.fixture
def world(tmp_path: Path) -> RunnerEnvironment:
    return RunnerEnvironment(tmp_path)


async def write(world: RunnerEnvironment, key: JobKey, event: JobEvent) -> None:
    """Write an event as somebody else."""
    entry = await world.edge.job_store.read(key)
    assert entry is not None
    await world.edge.job_store.update(key, next_record(entry.record.job, event, datetime.now(UTC)), entry.revision)


class WriteGate:
    """Program that prints a line at each push and exits when it is released."""

    def __init__(self) -> None:
        self.pushed = anyio.Event()
        self.started = anyio.Event()

    async def __call__(self, box: FakeContainer) -> int:
        box.write(b"before\n")
        self.started.set()
        await self.pushed.wait()
        box.write(b"after\n")
        write_outputs(box, {"a.txt": b"a"})
        return 0


async def test_a_broker_that_is_away_for_a_while_changes_nothing(world: RunnerEnvironment) -> None:
    gate = world.programs["gate"] = WriteGate()
    key = await world.submit("gate")
    async with world.run_runner() as runner:
        await wait_with_deadline(gate.started.wait)
        runner.bus.cut()
        gate.pushed.set()

        async def waits_for_it() -> bool:
            return next(iter(world.boxes.values())).state == "exited"

        await wait_for(waits_for_it)
        assert (await world.job(key)).status is Status.RUNNING
        runner.bus.heal()
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
        await world.wait_until_clean()
    assert await world.log_text(key) == "before\nafter\n"


async def test_a_job_released_meanwhile_is_taken_back(world: RunnerEnvironment) -> None:
    """Check that the result counts if the edge released the job and no other host has claimed it."""
    gate = world.programs["gate"] = WriteGate()
    key = await world.submit("gate")
    async with world.run_runner() as runner:
        await wait_with_deadline(gate.started.wait)
        runner.bus.cut()
        await write(world, key, AttemptReleased("host_lost"))
        gate.pushed.set()
        runner.bus.heal()
        job = await world.wait_until_ended(key)
        await world.wait_until_clean()
    assert (job.status, job.attempt) == (Status.SUCCEEDED, 1)
    assert await world.event_types(key) == ["Submitted", "Started", "AttemptReleased", "Adopted", "Succeeded"]


async def test_a_zombie_ends_nothing_and_clears_up(world: RunnerEnvironment) -> None:
    gate = world.programs["gate"] = WriteGate()
    key = await world.submit("gate")
    async with world.run_runner() as runner:
        await wait_with_deadline(gate.started.wait)
        runner.bus.cut()
        await write(world, key, AttemptReleased("host_lost"))
        await write(world, key, Started(Claim("gpu-2", "x", 2)))
        gate.pushed.set()
        runner.bus.heal()

        async def no_container() -> bool:
            return not world.boxes and not list((world.folder / "gpu-1").iterdir())

        await wait_for(no_container)
        job = await world.job(key)
    assert (job.status, job.attempt) == (Status.RUNNING, 2)
    assert await world.event_types(key) == ["Submitted", "Started", "AttemptReleased", "Started"]
    assert await world.edge.job_queue.list_pending()


async def test_a_job_deleted_under_the_runner_is_cleared_up(world: RunnerEnvironment) -> None:
    key = await world.submit("waits")
    async with world.run_runner():
        await world.wait_for_container()
        entry = await world.edge.job_store.read(key)
        assert entry is not None
        await world.edge.job_store.delete(key, entry.revision)

        async def no_container() -> bool:
            return not world.boxes

        await wait_for(no_container)
    assert await world.edge.job_store.read(key) is None


async def test_two_hosts_run_a_job_after_a_partition_and_one_ends_it(world: RunnerEnvironment) -> None:
    gate = world.programs["gate"] = WriteGate()
    key = await world.submit("gate")
    async with world.run_runner("i1", "gpu-1") as cut_off:
        await wait_with_deadline(gate.started.wait)
        cut_off.bus.cut()
        async with world.run_runner("i2", "gpu-2"):
            world.clock.ahead += 31

            async def judged() -> bool:
                world.clock.ahead += 31
                return (await world.job(key)).attempt == 2

            await wait_for(judged)
            gate.pushed.set()
            job = await world.wait_until_ended(key)
            cut_off.bus.heal()

            async def settled() -> bool:
                world.clock.ahead += 31  # a message that was delivered to the host behind the partition comes again
                return not await world.edge.job_queue.list_pending()

            await wait_for(settled)
            await world.wait_until_clean()
    assert job.claim is not None
    assert (job.status, job.claim.host) == (Status.SUCCEEDED, "gpu-2")
    assert (await world.event_types(key)).count("Succeeded") == 1


async def test_a_living_host_keeps_its_job(world: RunnerEnvironment) -> None:
    """Lose the acks but not the heartbeat: another host gets the message and leaves the job alone."""
    gate = world.programs["gate"] = WriteGate()
    world.pace = replace(world.pace, heartbeat_s=3600.0)
    key = await world.submit("gate")
    async with world.run_runner("i1", "gpu-1"):
        await wait_with_deadline(gate.started.wait)
        async with world.run_runner("i2", "gpu-2"):
            await time_passes(world, 35, "gpu-1")

            async def put_off() -> bool:
                return world.broker._jobs.due[1] > world.clock() + 15

            await wait_for(put_off)
            gate.pushed.set()
            job = await world.wait_until_ended(key)
    assert job.claim is not None
    assert (job.claim.host, job.attempt) == ("gpu-1", 1)


async def test_a_host_whose_heartbeat_cannot_be_read_keeps_its_job(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    key = await world.submit("well")
    await write(world, key, Started(Claim("gpu-2", "x", 1)))
    async with world.run_runner() as runner:
        get = runner.bus.heartbeats.get

        async def count_reads(host: str) -> TableRow[HostHeartbeat] | None:
            reads.append(host)
            return await get(host)

        monkeypatch.setattr(runner.bus.heartbeats, "get", count_reads)
        for number in (1, 2):  # the second time, the message was put off after the first
            world.clock.ahead += 31
            world.broker.corrupt("$KV.HOSTS.gpu-2", b"a row of a later release")

            async def is_read(expected: int = number) -> bool:
                return len(reads) == expected

            await wait_for(is_read)
        assert (await world.job(key)).attempt == 1

        async def is_ended() -> bool:
            world.clock.ahead += 31  # the row has expired
            return (await world.job(key)).status is Status.SUCCEEDED

        await wait_for(is_ended)
    assert await world.event_types(key) == ["Submitted", "Started", "AttemptReleased", "Started", "Succeeded"]


async def time_passes(world: RunnerEnvironment, seconds: int, host: str) -> None:
    """Advance in steps that leave `host` time for its heartbeat."""
    for _ in range(0, seconds, 5):
        before = await world.edge.heartbeats.get(host)
        world.clock.ahead += 5

        async def said_again(seen: object = before) -> bool:
            return await world.edge.heartbeats.get(host) != seen

        await wait_for(said_again)


async def test_the_same_message_again_swaps_the_handle(world: RunnerEnvironment) -> None:
    gate = world.programs["gate"] = WriteGate()
    world.slots = 2
    world.pace = replace(world.pace, heartbeat_s=3600.0)
    key = await world.submit("gate")
    async with world.run_runner():
        await wait_with_deadline(gate.started.wait)
        world.clock.ahead += 31
        gate.pushed.set()
        job = await world.wait_until_ended(key)
        await world.wait_until_clean()
    assert (job.status, job.attempt) == (Status.SUCCEEDED, 1)


async def test_another_message_of_the_same_round_goes(world: RunnerEnvironment) -> None:
    gate = world.programs["gate"] = WriteGate()
    world.slots = 2
    key = await world.submit("gate")
    async with world.run_runner():
        await wait_with_deadline(gate.started.wait)
        await world.edge.job_queue.publish((await world.job(key)).pointer, repair=True)
        other = await world.submit("waits", "j2")
        await world.wait_until_running(other)
        gate.pushed.set()
        job = await world.wait_until_ended(key)

        async def one_left() -> bool:
            return {pointer.id for pointer in await world.edge.job_queue.list_pending()} == {"j2"}

        await wait_for(one_left)
    assert (job.status, job.attempt) == (Status.SUCCEEDED, 1)


async def test_the_next_round_does_not_start_before_the_container_of_the_last_one_is_removed(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails_once(box: FakeContainer) -> int:
        write_outputs(box)
        return 65 if box.spec.identity.round == 1 else 0

    world.slots = 3
    world.programs["fails"] = fails_once
    key = await world.submit("fails")
    async with world.run_runner() as runner:
        remove, gate = runner.engine.remove, anyio.Event()

        async def remove_later(handle: str) -> None:
            await gate.wait()
            await remove(handle)

        monkeypatch.setattr(runner.engine, "remove", remove_later)
        await world.wait_until_ended(key)
        await write(world, key, Retried())
        await world.edge.job_queue.publish((await world.job(key)).pointer)

        async def is_put_off() -> bool:
            return 0 < world.broker._jobs.due.get(2, 0) - world.clock() <= 1

        await wait_for(is_put_off)
        await world.wait_until_running(await world.submit("waits", "j2"))  # the answer to the message is complete
        events = await world.event_types(key)
        gate.set()
        world.clock.ahead += 1.5
        job = await world.wait_until_ended(key)
    assert events == ["Submitted", "Started", "Failed", "Retried"]
    assert (job.status, job.round) == (Status.SUCCEEDED, 2)


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.CANCELLED])
async def test_a_message_of_a_final_job_goes(world: RunnerEnvironment, status: Status) -> None:
    key = await world.submit("well", "done")
    entry = await world.edge.job_store.read(key)
    assert entry is not None
    over = JobRecord(entry.record.at, entry.record.event, replace(entry.record.job, status=status))
    await world.edge.job_store.update(key, over, entry.revision)
    async with world.run_runner():
        await world.wait_until_clean()
    assert await world.event_types(key) == ["Submitted", "Submitted"]


async def test_a_job_that_is_not_due_is_left_until_then(world: RunnerEnvironment) -> None:
    key = await world.submit("well", "later", not_before=datetime(2999, 1, 1, tzinfo=UTC))
    first = await world.submit("well", "now")
    async with world.run_runner():
        assert (await world.wait_until_ended(first)).status is Status.SUCCEEDED
    assert (await world.job(key)).status is Status.QUEUED


async def test_a_dead_task_is_adopted_by_its_own_life(world: RunnerEnvironment) -> None:
    """Check that a crashed execution poisons its slot, and that recovery finds the container and takes it over."""
    gate = world.programs["gate"] = WriteGate()
    key = await world.submit("gate")
    async with world.run_runner():
        await wait_with_deadline(gate.started.wait)
        world.assets.broken = True
        gate.pushed.set()
        await world.wait_for_event(key, Adopted)
        world.assets.broken = False
        world.clock.ahead += 31  # the message comes again, and is acknowledged by the record
        job = await world.wait_until_ended(key)
        await world.wait_until_clean()
    assert (job.status, job.attempt) == (Status.SUCCEEDED, 1)


async def test_what_was_said_is_said_once_over_a_cut(world: RunnerEnvironment) -> None:
    gate = world.programs["gate"] = WriteGate()
    key = await world.submit("gate")
    async with world.run_runner() as runner:
        await wait_with_deadline(gate.started.wait)
        runner.bus.cut()
        gate.pushed.set()
        runner.bus.heal()
        await world.wait_until_ended(key)
    notes = await world.notes(key)
    offsets = [note.position.offset for note in notes if isinstance(note, LogMessage)]
    assert offsets == sorted(set(offsets))
    assert isinstance(notes[-1], LogEndMessage)
    assert notes[-1].position.offset == len("before\nafter\n")


async def test_a_message_that_comes_while_the_last_attempt_is_cleared_away_is_not_swallowed(
    world: RunnerEnvironment,
) -> None:
    """Delay the engine's removal: the retry's message arrives before it has finished."""
    tries: list[int] = []

    async def lucky(box: FakeContainer) -> int:
        tries.append(box.spec.identity.attempt)
        write_outputs(box)
        return 0 if len(tries) > 1 else 75

    world.slots = 2
    world.programs["lucky"] = lucky
    key = await world.submit("lucky")
    async with world.run_runner() as runner:
        slow, gate = runner.engine.remove, anyio.Event()

        async def remove(handle: str) -> None:
            await gate.wait()
            await slow(handle)

        runner.engine.remove = remove  # type: ignore[method-assign]
        await world.wait_for_event(key, AttemptReleased)

        async def put_off() -> bool:
            world.clock.ahead += 0.1
            return world.broker._jobs.due[1] > world.clock() and world.clock.ahead > 5

        await wait_for(put_off)
        gate.set()
        world.clock.ahead += 1.5
        job = await world.wait_until_ended(key)
    assert (job.status, tries) == (Status.SUCCEEDED, [1, 2])


@pytest.mark.parametrize(
    ("meanwhile", "is_ours"), [("written", True), ("not written", False), ("another event", False), ("deleted", False)]
)
async def test_a_write_whose_answer_was_lost_counts_if_the_record_is_ours(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch, meanwhile: str, is_ours: bool
) -> None:
    world.slots = 0
    key = await world.submit("well")
    async with world.run_runner() as runner:
        await write(world, key, Started(runner.context.claim(1)))
        entry = await world.edge.job_store.read(key)
        assert entry is not None
        update = runner.bus.job_store.update

        async def lose_answer(*args: Any) -> int:
            if meanwhile == "written":
                await update(*args)
            if meanwhile == "another event":
                await write(world, key, AttemptReleased("host_lost"))
            if meanwhile == "deleted":
                await world.edge.job_store.delete(key, entry.revision)
            raise BrokerUnreachable("the answer was lost: the test said so")

        monkeypatch.setattr(runner.bus.job_store, "update", lose_answer)
        if is_ours:
            written = await record_event(runner.context, entry, Succeeded(Output()))
            assert written.record.job.status is Status.SUCCEEDED
            assert written == await world.edge.job_store.read(key)
        else:
            with pytest.raises(RevisionConflict):
                await record_event(runner.context, entry, Succeeded(Output()))


async def test_a_check_that_reads_our_own_release_does_not_claim_the_job_back(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begin the check during the upload, and let it read the record only after the end was recorded."""
    world.pace = replace(world.pace, heartbeat_s=3600.0)
    reading, go_on, cleared = anyio.Event(), anyio.Event(), anyio.Event()

    async def fail_once(box: FakeContainer) -> int:
        world.assets.away = box.spec.identity.attempt == 1
        box.write(b"a log to upload\n")
        write_outputs(box)
        return 75 if world.assets.away else 0

    world.programs["lucky"] = fail_once
    key = await world.submit("lucky")
    async with world.run_runner() as runner:
        read, remove = runner.bus.job_store.read, runner.engine.remove

        async def read_late(wanted: JobKey) -> VersionedRecord | None:
            monkeypatch.setattr(runner.bus.job_store, "read", read)
            reading.set()
            await go_on.wait()
            return await read(wanted)

        async def remove_late(handle: str) -> None:
            await cleared.wait()
            await remove(handle)

        await wait_with_deadline(world.assets.asked.wait)
        monkeypatch.setattr(runner.engine, "remove", remove_late)
        monkeypatch.setattr(runner.bus.job_store, "read", read_late)
        await world.edge.host_nudges.nudge("gpu-1", key)
        await wait_with_deadline(reading.wait)
        world.assets.away = False
        await world.wait_for_event(key, AttemptReleased)
        go_on.set()
        await wait_with_deadline(anyio.wait_all_tasks_blocked)
        cleared.set()

        async def is_ended() -> bool:
            world.clock.ahead += 60
            return (await world.job(key)).status is Status.SUCCEEDED

        await wait_for(is_ended)
    assert await world.event_types(key) == ["Submitted", "Started", "AttemptReleased", "Started", "Succeeded"]


async def test_a_claim_is_of_one_round_and_ends_with_it(world: RunnerEnvironment) -> None:
    """Start the second round with the same claim, as this runner process does if it gets the job again."""

    def always() -> bool:
        return True

    world.slots = 0
    key = await world.submit("well")
    async with world.run_runner() as runner:
        claim = runner.context.claim(1)
        first, second = (FencedJob(runner.context, key, round_, claim) for round_ in (1, 2))
        await write(world, key, Started(claim))
        assert (await first.read_job(always)).attempt == 1
        await write(world, key, Failed(make_failure()))
        with pytest.raises(ClaimLost, match="failed"):
            await first.read_job(always)
        await write(world, key, Retried())
        await write(world, key, Started(claim))
        with pytest.raises(ClaimLost, match="round 2"):
            await first.read_job(always)
        assert (await second.read_job(always)).round == 2
        entry = await world.edge.job_store.read(key)
        assert entry is not None
        await world.edge.job_store.delete(key, entry.revision)
        with pytest.raises(ClaimLost, match="does not exist"):
            await second.read_job(always)


async def test_a_record_of_the_limit_is_written_and_one_byte_more_is_refused(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.slots = 0
    later = datetime(2999, 1, 1, tzinfo=UTC)  # no event is earlier than its job, so its time is known
    key = await world.submit("well", queued_at=later)
    async with world.run_runner() as runner:
        entry = await world.edge.job_store.read(key)
        assert entry is not None
        event = Started(runner.context.claim(1))
        size = len(encode_record(next_record(entry.record.job, event, later)))
        monkeypatch.setattr("runner.execution.durable_state.RECORD_LIMIT_BYTES", size - 1)
        with pytest.raises(MessageTooLarge, match=f"{size} bytes"):
            await record_event(runner.context, entry, event)
        monkeypatch.setattr("runner.execution.durable_state.RECORD_LIMIT_BYTES", size)
        assert (await record_event(runner.context, entry, event)).record.job.started_at == later
