"""One job from start to end over the fakes: what is recorded, published, kept and removed."""

import errno
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from runner.assets.port import AssetError
from runner.engines.port import ContainerSpec, FoundContainer, OutputChunk, OutputCursor, StartFailed
from runner.execution.execution import ExecutionRegistry
from schemas.endpoint import Timeouts
from schemas.events import AttemptReleased, FeedMessage, LogEndMessage, ProgressMessage, encode_record
from schemas.job import METRIC_LIMIT, OUTPUT_DATA_LIMIT_BYTES, JobKey, JobMetric, OutputFile, Policy, Status
from tests.support.fake_engine import EndBySignal, FakeContainer, Program
from tests.support.runner_environment import RunnerEnvironment, wait_with_deadline, write_outputs
from tests.support.wait import wait_for


@pytest.fixture
def world(tmp_path: Path) -> RunnerEnvironment:
    return RunnerEnvironment(tmp_path)


async def test_a_job_succeeds_and_leaves_nothing_behind(world: RunnerEnvironment) -> None:
    async def reads(box: FakeContainer) -> int:
        given = (box.spec.job_dir / "in" / "file.mp4").read_bytes()
        assert b'"input":{"file":"file.mp4"}' in (box.spec.job_dir / "job.json").read_bytes()
        box.write(b'{"type":"progress","fraction":0.5}\nhello\n{"type":"progress","fraction":1}\nbye\n')
        write_outputs(box, {"copy.bin": given}, {"text": "ok"})
        return 0

    world.programs["reads"] = reads
    file = world.assets.add(b"content")
    world.assets.suffixes[file.removeprefix("sha256:")] = ".mp4"
    key = await world.submit("reads", input={"file": file})
    async with world.run_runner():
        job = await world.wait_until_ended(key)
        await world.wait_until_clean()
    assert job.status is Status.SUCCEEDED
    assert job.output is not None
    assert job.output.data == {"text": "ok"}
    assert [(file.name, world.assets.held[file.sha256]) for file in job.output.files] == [("copy.bin", b"content")]
    assert world.assets.text(job.log) == "hello\nbye\n"
    assert await world.log_text(key) == "hello\nbye\n"
    assert await world.event_types(key) == ["Submitted", "Started", "Succeeded"]
    assert job.usage.run_s is not None
    assert job.started_at is not None
    assert job.queued_at is not None
    assert job.usage.queued_s == (job.started_at - job.queued_at).total_seconds()
    notes = await world.notes(key)
    assert isinstance(notes[-1], LogEndMessage)
    assert [note.fraction for note in notes if isinstance(note, ProgressMessage)][-1] == 1


async def test_the_output_is_published_before_the_end_is_recorded(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded, seen = anyio.Event(), list[Status]()
    key = await world.submit("well")
    async with world.run_runner() as runner:
        publish, upload = runner.bus.feed.publish, world.assets.upload

        async def upload_and_tell(owner: str, path: Path, name: str) -> OutputFile:
            file = await upload(owner, path, name)
            if name == "result.txt":
                uploaded.set()
            return file

        async def publish_after_the_upload(key: JobKey, message: FeedMessage) -> None:
            if not isinstance(message, LogEndMessage):
                await uploaded.wait()
                await anyio.wait_all_tasks_blocked()
                seen.append((await world.job(key)).status)
            await publish(key, message)

        monkeypatch.setattr(world.assets, "upload", upload_and_tell)
        monkeypatch.setattr(runner.bus.feed, "publish", publish_after_the_upload)
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
    assert set(seen) == {Status.RUNNING}
    assert await world.log_text(key) == "half way\ndone\n"


async def test_a_job_that_started_before_it_was_queued_has_waited_no_time(world: RunnerEnvironment) -> None:
    """The record says so if the clock of the host that claimed it was behind the edge's."""
    key, box = await world.kill_runner_during_job("waits")
    write_outputs(box)
    box.finish(0)
    entry = await world.edge.job_store.read(key)
    assert entry is not None
    assert entry.record.job.started_at is not None
    job = replace(entry.record.job, queued_at=entry.record.job.started_at + timedelta(seconds=0.5))
    await world.edge.job_store.update(key, replace(entry.record, job=job), entry.revision)
    async with world.run_runner("i2"):
        ended = await world.wait_until_ended(key)
    assert (ended.status, ended.usage.queued_s) == (Status.SUCCEEDED, 0.0)


async def says_no_face(box: FakeContainer) -> int:
    box.write(b'{"type":"error","code":"no_face","message":"nobody is there"}\n')
    return 65


async def crashes(box: FakeContainer) -> int:
    raise EndBySignal(139)


async def runs_out(box: FakeContainer) -> int:
    raise EndBySignal(0, oom_killed=True)


async def answers_nothing(box: FakeContainer) -> int:
    return 0


async def answers_too_much(box: FakeContainer) -> int:
    write_outputs(box, data={"text": "x" * OUTPUT_DATA_LIMIT_BYTES})
    return 0


async def answers_rubbish(box: FakeContainer) -> int:
    write_outputs(box)
    (box.spec.job_dir / "out" / "output.json").write_text("[1")
    return 0


async def links_away(box: FakeContainer) -> int:
    write_outputs(box)
    (box.spec.job_dir / "out" / "passwd").symlink_to("/etc/passwd")
    return 0


async def says_it_in_gbk(box: FakeContainer) -> int:
    box.write('{"type":"error","code":"no_face","message":"没有人脸"}\n'.encode("gbk"))
    return 65


async def nests(box: FakeContainer) -> int:
    box.write(b'{"type":"progress","fraction":' + b"[" * 60_000 + b"\n")
    write_outputs(box)
    (box.spec.job_dir / "out" / "output.json").write_text('{"a":' + "[" * 500 + "]" * 500 + "}")
    return 0


FAILING = [
    (says_it_in_gbk, "no_face"),
    (nests, "output_invalid"),
    (says_no_face, "no_face"),
    (crashes, "internal"),
    (runs_out, "out_of_memory"),
    (answers_nothing, "output_missing"),
    (answers_too_much, "output_too_large"),
    (answers_rubbish, "output_invalid"),
    (links_away, "output_invalid"),
]


@pytest.mark.parametrize(("program", "code"), FAILING)
async def test_a_failure_is_reported_by_its_code(world: RunnerEnvironment, program: Program, code: str) -> None:
    world.programs["fails"] = program
    key = await world.submit("fails", policy=Policy(max_attempts=1))
    async with world.run_runner():
        job = await world.wait_until_ended(key)
        await world.wait_until_clean()
    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error.code == code
    assert job.output is None


async def test_files_alone_are_a_result(world: RunnerEnvironment) -> None:
    async def only_a_file(box: FakeContainer) -> int:
        (box.spec.job_dir / "out" / "made.txt").write_bytes(b"made")
        return 0

    world.programs["plain"] = only_a_file
    key = await world.submit("plain")
    async with world.run_runner():
        job = await world.wait_until_ended(key)
    assert job.output is not None
    assert ([file.name for file in job.output.files], job.output.data) == (["made.txt"], {})


async def test_a_disk_that_takes_no_log_and_no_journal_costs_the_log(world: RunnerEnvironment) -> None:
    async def on_a_bad_disk(box: FakeContainer) -> int:
        beside = box.spec.job_dir.parent
        (beside / "log.head").mkdir()
        await wait_for(anyio.Path(beside / "journal.json").exists)
        (beside / "journal.json").unlink()
        (beside / "journal.json").mkdir()
        box.write(b"said anyway\n")
        write_outputs(box, {"made.txt": b"made"})
        return 0

    world.programs["spoilt"] = on_a_bad_disk
    key = await world.submit("spoilt")
    async with world.run_runner():
        job = await world.wait_until_ended(key)
        await world.wait_until_clean()
    assert (job.status, job.log) == (Status.SUCCEEDED, None)
    assert await world.log_text(key) == "said anyway\n"
    assert await world.event_types(key) == ["Submitted", "Started", "Succeeded"]


async def test_a_retryable_failure_waits_and_starts_again(world: RunnerEnvironment) -> None:
    tries = []

    async def second_time_lucky(box: FakeContainer) -> int:
        tries.append(box.spec.identity.attempt)
        write_outputs(box)
        return 0 if len(tries) > 1 else 75

    world.programs["lucky"] = second_time_lucky
    key = await world.submit("lucky")
    async with world.run_runner():
        waiting = await world.wait_for_event(key, AttemptReleased)
        assert waiting.backoff_until is not None
        world.clock.ahead += 60
        job = await world.wait_until_ended(key)
    assert job.status is Status.SUCCEEDED
    assert tries == [1, 2]
    assert await world.event_types(key) == ["Submitted", "Started", "AttemptReleased", "Started", "Succeeded"]


async def test_an_input_that_is_gone_fails_the_job_for_good(world: RunnerEnvironment) -> None:
    key = await world.submit("well", input={"file": "sha256:" + "0" * 64})
    async with world.run_runner():
        job = await world.wait_until_ended(key)
        await world.wait_until_clean()
    assert job.error is not None
    assert (job.error.code, job.error.blame) == ("asset_gone", "client")


async def test_a_start_that_fails_costs_no_attempt(world: RunnerEnvironment) -> None:
    key = await world.submit("well")
    async with world.run_runner() as runner:
        runner.engine.next_start_failure = StartFailed("engine_error", "the engine said no")
        job = await world.wait_for_event(key, AttemptReleased)
    assert (job.status, job.charged_attempts, job.free_releases) == (Status.QUEUED, 0, {"engine_error": 1})


async def test_output_that_cannot_be_read_costs_no_attempt_and_no_slot(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreadable(*_: object) -> AsyncGenerator[OutputChunk]:
        yield OutputChunk("stdout", b"", OutputCursor(0, "0"))
        raise OSError(errno.EIO, "the disk failed")

    key = await world.submit("waits")
    async with world.run_runner() as runner:
        monkeypatch.setattr(runner.engine, "output", unreadable)
        job = await world.wait_for_event(key, AttemptReleased)
        assert not runner.host.slots.poisoned
    assert (job.charged_attempts, job.free_releases) == (0, {"engine_error": 1})


async def test_a_job_whose_output_cannot_be_read_after_its_cancellation_is_cancelled(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = anyio.Event()

    async def unreadable_at_the_end(*_: object) -> AsyncGenerator[OutputChunk]:
        yield OutputChunk("stdout", b'{"type":"progress","fraction":0.5}\n', OutputCursor(0, "0"))
        await stopped.wait()
        raise OSError(errno.EIO, "the disk failed")

    async def stop(*_: object, **__: object) -> None:
        stopped.set()

    key = await world.submit("waits")
    async with world.run_runner() as runner:
        monkeypatch.setattr(runner.engine, "output", unreadable_at_the_end)
        monkeypatch.setattr(runner.engine, "stop", stop)
        await world.wait_until_running(key)
        await world.wait_for_container()
        await world.cancel(key)
        job = await world.wait_until_ended(key)
    assert job.status is Status.CANCELLED
    assert (await world.event_types(key))[-1] == "Cancelled", "not a release of the attempt for engine_error"


async def test_too_long_is_an_execution_timeout(world: RunnerEnvironment) -> None:
    world.timeouts = Timeouts(base_s=0.05, grace_s=0.1)
    key = await world.submit("waits")
    async with world.run_runner():
        job = await world.wait_until_ended(key)
        await world.wait_until_clean()
    assert job.error is not None
    assert job.error.code == "execution_timeout"


async def test_no_progress_is_a_stall(world: RunnerEnvironment) -> None:
    key = await world.submit("waits", policy=Policy(stall_timeout_s=0.05, max_attempts=1))
    async with world.run_runner():
        job = await world.wait_until_ended(key)
    assert job.error is not None
    assert job.error.code == "stalled"


async def test_a_running_job_is_cancelled_by_the_record_alone(world: RunnerEnvironment) -> None:
    key = await world.submit("waits")
    async with world.run_runner():
        await world.wait_until_running(key)
        await world.wait_for_container()
        await world.cancel(key)
        job = await world.wait_until_ended(key)
        await world.wait_until_clean()
    assert job.status is Status.CANCELLED
    assert await world.event_types(key) == ["Submitted", "Started", "CancelRequested", "Cancelled"]


async def test_cancelled_while_the_inputs_come(world: RunnerEnvironment) -> None:
    world.assets.away = True
    key = await world.submit("well", input={"file": "sha256:" + "0" * 64})
    async with world.run_runner():
        await wait_with_deadline(world.assets.asked.wait)
        await world.cancel(key)
        job = await world.wait_until_ended(key)
        await world.wait_until_clean()
    assert job.status is Status.CANCELLED
    assert not world.boxes


async def test_cancelled_while_the_outputs_go(world: RunnerEnvironment) -> None:
    """Check that a cancellation does not wait for the uploads, which may take long."""

    async def edge_goes(box: FakeContainer) -> int:
        write_outputs(box, {"a.txt": b"a"})
        world.assets.away = True
        return 0

    world.programs["quick"] = edge_goes
    key = await world.submit("quick")
    async with world.run_runner():
        await wait_with_deadline(world.assets.asked.wait)
        await world.cancel(key)
        job = await world.wait_until_ended(key)
        await world.wait_until_clean()
    assert job.status is Status.CANCELLED


async def test_a_nudge_is_heard_before_the_heartbeat(world: RunnerEnvironment) -> None:
    world.pace = replace(world.pace, heartbeat_s=3600.0)
    key = await world.submit("waits")
    async with world.run_runner():
        await world.wait_until_running(key)
        await world.wait_for_container()
        await world.cancel(key)
        await world.edge.host_nudges.nudge("gpu-1", key)
        job = await world.wait_until_ended(key)
    assert job.status is Status.CANCELLED


async def test_the_edge_away_at_the_upload_is_waited_for(world: RunnerEnvironment) -> None:
    async def edge_goes(box: FakeContainer) -> int:
        world.assets.away = True
        write_outputs(box, {"a.txt": b"a"})
        return 0

    world.programs["edge_goes"] = edge_goes
    key = await world.submit("edge_goes")
    other = await world.submit("well", "j2")
    async with world.run_runner():
        await wait_with_deadline(world.assets.asked.wait)
        assert (await world.job(key)).status is Status.RUNNING
        assert (await world.job(other)).status is Status.QUEUED
        world.assets.away = False
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
        assert (await world.wait_until_ended(other)).status is Status.SUCCEEDED


async def test_a_result_that_no_record_holds_is_a_final_failure(world: RunnerEnvironment) -> None:
    async def many(box: FakeContainer) -> int:
        write_outputs(box, {"n" * 90 + f"{number}": b"" for number in range(999)}, {"text": "y" * 250_000})
        return 0

    async def wide(box: FakeContainer) -> int:
        write_outputs(box, data={"text": "y" * 250_000})
        return 0

    world.programs |= {"many": many, "wide": wide}
    fits = await world.submit("wide", "j1")
    key = await world.submit("many", "j2", input={"pad": "z" * 100_000})
    async with world.run_runner():
        assert (await world.wait_until_ended(fits)).status is Status.SUCCEEDED
        job = await world.wait_until_ended(key)
    assert job.error is not None
    assert job.error.code == "output_too_large"


@pytest.mark.parametrize(("exit_code", "code"), [(0, None), (65, "bad_input")], ids=["succeeded", "failed"])
async def test_a_record_without_room_for_metrics_keeps_how_the_job_ended(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch, exit_code: int, code: str | None
) -> None:
    async def measures(box: FakeContainer) -> int:
        for number in range(METRIC_LIMIT):
            box.write(b'{"type":"metric","name":"%d-%s","value":1}\n' % (number, b"m" * 190))
        write_outputs(box)
        entry = await world.edge.job_store.read(key)
        assert entry is not None
        monkeypatch.setattr(
            "runner.execution.durable_state.RECORD_LIMIT_BYTES", len(encode_record(entry.record)) + 3_000
        )
        return exit_code

    world.programs["measures"] = measures
    key = await world.submit("measures")
    async with world.run_runner():
        job = await world.wait_until_ended(key)
    assert (job.error.code if job.error else None, job.metrics) == (code, ())


async def test_a_failed_job_keeps_its_last_words(world: RunnerEnvironment) -> None:
    async def raises(box: FakeContainer) -> int:
        box.write(b'Traceback (most recent call last):\n  File "main.py", line 1\n', "stderr")
        box.write(b"ValueError: no such model: \x1b[31mnumpy\n", "stderr")
        return 1

    world.programs["raises"] = raises
    key = await world.submit("raises", policy=Policy(max_attempts=1))
    async with world.run_runner():
        job = await world.wait_until_ended(key)
    assert job.error is not None
    assert (job.error.code, job.error.message) == ("internal", "the job exited with code 1")
    assert job.error.log_tail == (
        "Traceback (most recent call last):",
        '  File "main.py", line 1',
        "ValueError: no such model: \\x1b[31mnumpy",
    )


@pytest.mark.parametrize(
    ("exit_code", "status"), [(0, Status.SUCCEEDED), (65, Status.FAILED)], ids=["succeeded", "failed"]
)
async def test_the_last_value_of_each_metric_is_kept_on_the_job(
    world: RunnerEnvironment, exit_code: int, status: Status
) -> None:
    async def measures(box: FakeContainer) -> int:
        for value in (1, 24.5):
            box.write(b'{"type":"metric","name":"fps","value":%a,"unit":"1/s"}\n' % value)
        for number in range(2 * METRIC_LIMIT):
            box.write(b'{"type":"metric","name":"m%d","value":%d}\n' % (number, number))
        write_outputs(box)
        return exit_code

    world.programs["measures"] = measures
    key = await world.submit("measures", policy=Policy(max_attempts=1))
    async with world.run_runner():
        job = await world.wait_until_ended(key)
    assert job.status is status
    assert job.metrics == (
        JobMetric("fps", 24.5, "1/s"),
        *(JobMetric(f"m{number}", float(number)) for number in range(METRIC_LIMIT - 1)),
    )


async def test_a_log_that_the_edge_refuses_costs_only_the_log(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = world.assets.upload

    async def refuse_log(owner: str, path: Path, name: str) -> OutputFile:
        if name == "log.txt":
            raise AssetError("the edge refuses it: the test said so")
        return await upload(owner, path, name)

    monkeypatch.setattr(world.assets, "upload", refuse_log)
    key = await world.submit("well")
    async with world.run_runner():
        job = await world.wait_until_ended(key)
        await world.wait_until_clean()
    assert job.output is not None
    assert (job.status, job.log, [file.name for file in job.output.files]) == (Status.SUCCEEDED, None, ["result.txt"])


async def test_a_container_is_removed_after_its_message_was_answered(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Look at the record and the queue when the container goes: until then it is the proof of how the job ended."""
    key = await world.submit("well")
    seen: list[tuple[Status, int]] = []
    async with world.run_runner() as runner:
        remove = runner.engine.remove

        async def look(handle: str) -> None:
            seen.append(((await world.job(key)).status, len(await world.edge.job_queue.list_pending())))
            await remove(handle)

        monkeypatch.setattr(runner.engine, "remove", look)
        await world.wait_until_ended(key)
        await world.wait_until_clean()
    assert seen == [(Status.SUCCEEDED, 0)]


@pytest.mark.parametrize(("starts", "free"), [(True, 1), (False, 0)], ids=["exited", "never started"])
async def test_a_slot_is_free_before_the_record_only_if_the_container_has_exited(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch, starts: bool, free: int
) -> None:
    world.pace = replace(world.pace, heartbeat_s=3600.0)
    recording, gate = anyio.Event(), anyio.Event()
    key = await world.submit("well")
    async with world.run_runner() as runner:
        start, update = runner.engine.start, runner.bus.job_store.update

        async def wait_for_gate(*args: Any) -> int:
            recording.set()
            await gate.wait()
            return await update(*args)

        async def start_or_refuse(spec: ContainerSpec) -> str:
            monkeypatch.setattr(runner.bus.job_store, "update", wait_for_gate)
            if not starts:
                raise StartFailed("engine_error", "the engine said no")
            return await start(spec)

        monkeypatch.setattr(runner.engine, "start", start_or_refuse)
        await wait_with_deadline(recording.wait)
        assert runner.host.slots.free == free
        gate.set()
        ended = await (world.wait_until_ended(key) if starts else world.wait_for_event(key, AttemptReleased))

        async def is_free() -> bool:
            return runner.host.slots.free == 1

        await wait_for(is_free)
    assert ended.status is (Status.SUCCEEDED if starts else Status.QUEUED)


async def test_a_container_goes_by_its_handle_where_the_engine_does_not_list_it(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def list_nothing(*_: str) -> list[FoundContainer]:
        return []

    key = await world.submit("well")
    async with world.run_runner() as runner:
        monkeypatch.setattr(runner.engine, "find", list_nothing)
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
        await world.wait_until_clean()


async def test_a_container_whose_start_was_not_answered_goes_and_no_other(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.slots = 2
    working = await world.submit("waits", "working")
    async with world.run_runner() as runner:
        box = await world.wait_for_container()

        async def create_and_fail(spec: ContainerSpec) -> str:
            runner.engine.create(spec)
            raise StartFailed("engine_error", "the engine did not answer")

        monkeypatch.setattr(runner.engine, "start", create_and_fail)
        lost = await world.submit("well", "lost")
        await world.wait_for_event(lost, AttemptReleased)

        async def one_left() -> bool:
            return list(world.boxes.values()) == [box]

        await wait_for(one_left)
        assert box.state == "running"
    assert (await world.job(working)).status is Status.RUNNING


async def test_a_round_has_one_execution(world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[tuple[ExecutionRegistry, tuple[Any, ...]]] = []
    launch = ExecutionRegistry.launch

    def record_launch(registry: ExecutionRegistry, *args: Any) -> None:
        launched.append((registry, args))
        launch(registry, *args)

    monkeypatch.setattr(ExecutionRegistry, "launch", record_launch)
    await world.submit("waits")
    async with world.run_runner():
        await world.wait_for_container()
        ((registry, args),) = launched
        with pytest.raises(RuntimeError, match="already running"):
            launch(registry, *args)
        assert len(registry.active) == 1
