"""Reused containers over the fakes: who gets which container, what a job leaves, and when a container has to go."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from bus.interface import QueueMessage, VersionedRecord
from runner import lifecycle
from runner.assets.container_folders import SecretFiles
from runner.claiming.volumes import HostVolumes
from runner.endpoints import LocalEndpoint
from runner.engines.port import MIB, WARM_ENV, ContainerUsage
from runner.execution.execution import Execution
from schemas.container_protocol import ExitCode
from schemas.endpoint import Reuse
from schemas.events import AttemptReleased, Failed, JobEvent, JobRecord, Started, Succeeded
from schemas.job import Claim, Job, JobKey, Policy, Priority, Status
from schemas.lifecycle import next_record
from tests.runner.warm_programs import STREAMS, reused_program, wait_for_start_line, warm_endpoint, warm_program
from tests.support.fake_engine import EndBySignal, FakeContainer
from tests.support.runner_environment import DEADLINE_S, RunnerEnvironment, wait_with_deadline
from tests.support.schema_samples import make_failure
from tests.support.wait import wait_for


async def work(box: FakeContainer, folder: Path) -> int:
    """Write the text of the job's input to its log and its output."""
    name = folder.name
    box.write(b'{"type":"progress","fraction":1}\nlog of %s\n' % name.encode())
    (folder / "out" / "output.json").write_text(f'{{"number":"{name}","box":"{box.handle}"}}')
    return 0


@pytest.fixture
def world(tmp_path: Path) -> RunnerEnvironment:
    """Return an environment whose endpoint `kept` reuses its containers."""
    made = RunnerEnvironment(tmp_path)
    made.programs = {"kept": reused_program(work)}
    allow(made, Reuse())
    return made


def allow(world: RunnerEnvironment, reuse: Reuse, *, warm: bool = True) -> None:
    endpoint = warm_endpoint("kept", world.folder)
    config = replace(endpoint.config, reuse=reuse, warm=warm)
    world.kinds = {"kept": replace(endpoint, config=config)}


async def write(world: RunnerEnvironment, key: JobKey, event: JobEvent) -> None:
    """Write an event as somebody else."""
    entry = await world.edge.job_store.read(key)
    assert entry is not None
    await world.edge.job_store.update(key, next_record(entry.record.job, event, world.now()), entry.revision)


async def run_job(world: RunnerEnvironment, id_: str, owner: str = "ada") -> dict[str, str]:
    """Run one job to its success; return its data."""
    ended = await world.wait_until_ended(await world.submit("kept", id_, owner))
    assert ended.status is Status.SUCCEEDED, ended.error
    assert ended.output is not None
    return dict(ended.output.data)


@pytest.mark.parametrize("warm", [True, False])
async def test_one_container_runs_job_after_job(world: RunnerEnvironment, warm: bool) -> None:
    allow(world, Reuse(), warm=warm)
    async with world.run_runner() as runner:
        ran = [await run_job(world, f"j{number}") for number in (1, 2, 3)]
        await runner.drained()
    assert [one["number"] for one in ran] == ["1", "2", "3"]
    assert len({one["box"] for one in ran}) == 1
    await world.wait_until_clean()


@pytest.mark.parametrize(("warm", "reuse"), [(False, None), (True, None), (True, Reuse())])
async def test_every_container_has_the_variables_of_its_endpoint(
    tmp_path: Path, warm: bool, reuse: Reuse | None
) -> None:
    seen: list[str | None] = []

    async def looks(box: FakeContainer) -> int:
        seen.append(box.spec.env.get("GREETING"))
        folder = box.spec.job_dir / ("1" if reuse else "")
        return await work(box, folder)

    world = RunnerEnvironment(tmp_path)
    world.programs = {"kept": reused_program(lambda box, _: looks(box)) if reuse else warm_program(looks)}
    endpoint = warm_endpoint("kept", tmp_path)
    config = replace(endpoint.config, reuse=reuse, warm=warm, env={"GREETING": "good morning"})
    world.kinds = {"kept": replace(endpoint, config=config)}
    async with world.run_runner() as runner:
        await run_job(world, "j1")
        await runner.drained()
    assert seen == ["good morning"]


async def test_the_log_and_the_folder_of_a_job_are_its_own(world: RunnerEnvironment) -> None:
    seen: list[set[str]] = []

    async def looks(box: FakeContainer, folder: Path) -> int:
        seen.append({entry.name for entry in box.spec.job_dir.iterdir() if entry.name.isdigit()})
        (folder / "tmp" / "scratch").touch()
        return await work(box, folder)

    world.programs = {"kept": reused_program(looks)}
    async with world.run_runner() as runner:
        keys = []
        for number in (1, 2):
            keys.append(await world.submit("kept", f"j{number}"))
            await world.wait_until_ended(keys[-1])
        logs = [await world.log_text(key) for key in keys]

        async def are_removed() -> bool:
            (box,) = world.boxes.values()
            return not [path for path in box.spec.job_dir.parent.iterdir() if path.name in {"run-1", "run-2"}]

        await wait_for(are_removed)
        await runner.drained()
    assert seen == [{"1"}, {"2"}]
    assert "log of 1" in logs[0]
    assert "log of 2" not in logs[0]
    assert logs[1] == "log of 2\n"


@pytest.mark.parametrize("case", ["kept", "retired", "held too long"])
async def test_the_next_job_is_claimed_while_the_end_is_recorded_and_starts_after_it(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """A message in hand is not lost, and nothing is claimed for a container of the last job that has to go."""
    fetched, claimed, recorded = anyio.Event(), anyio.Event(), anyio.Event()
    started_early: list[bool] = []

    async def work_once(box: FakeContainer, folder: Path) -> int:
        started_early.append(not recorded.is_set())
        if case == "retired":
            leave_file(box, folder)
        return await work(box, folder)

    world.programs = {"kept": reused_program(work_once)}
    if case == "held too long":
        monkeypatch.setattr("runner.claiming.loop.HOLD_LIMIT_S", 0.0)
    keys = [await world.submit("kept", f"j{number}") for number in (1, 2)]
    async with world.run_runner() as runner:
        update, fetch = runner.bus.job_store.update, runner.bus.job_queue.fetch

        async def see_fetch(*lane: Any) -> QueueMessage | None:
            delivery = await fetch(*lane)
            if delivery is not None and delivery.pointer.key == keys[1]:
                fetched.set()
            return delivery

        async def see_update(key: JobKey, record: JobRecord, revision: int) -> int:
            if isinstance(record.event, Succeeded) and key == keys[0]:
                with anyio.fail_after(30):
                    await (fetched if case == "retired" else claimed).wait()
            assert case != "retired" or key == keys[0] or recorded.is_set()
            revision = await update(key, record, revision)
            if isinstance(record.event, Succeeded):
                recorded.set()
            elif isinstance(record.event, Started) and key == keys[1]:
                claimed.set()
            return revision

        monkeypatch.setattr(runner.bus.job_queue, "fetch", see_fetch)
        monkeypatch.setattr(runner.bus.job_store, "update", see_update)
        ended = [await world.wait_until_ended(key) for key in keys]
        await runner.drained()
    assert [job.status for job in ended] == [Status.SUCCEEDED] * 2
    assert [job.attempt for job in ended] == [1, 1]
    numbers = [job.output.data["number"] for job in ended if job.output is not None]
    assert numbers == (["1", "1"] if case == "retired" else ["1", "2"])
    assert started_early == [True, False]
    await world.wait_until_clean()


async def test_a_record_that_is_not_queued_when_it_is_read_ahead_is_read_again_when_the_slot_is_free(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another host runs the next job when its message is fetched, and releases it before the slot is free."""
    monkeypatch.setattr("runner.claiming.loop.HOLD_LIMIT_S", DEADLINE_S)
    world.pace = replace(world.pace, ahead_s=DEADLINE_S)
    first, second = [await world.submit("kept", f"j{number}") for number in (1, 2)]
    await write(world, second, Started(Claim("gpu-2", "x", 1)))
    worked, read_ahead = anyio.Event(), anyio.Event()

    async def work_once(box: FakeContainer, folder: Path) -> int:
        worked.set()
        return await work(box, folder)

    world.programs = {"kept": reused_program(work_once)}
    async with world.run_runner() as runner:
        read, usage = runner.bus.job_store.read, runner.engine.usage

        async def see_read(key: JobKey) -> VersionedRecord | None:
            entry = await read(key)
            if key == second:
                read_ahead.set()
            return entry

        async def release_before_the_slot_is_free(handle: str) -> ContainerUsage:
            if worked.is_set() and not read_ahead.is_set():
                await wait_with_deadline(read_ahead.wait)
                await write(world, second, AttemptReleased("host_lost"))
            return await usage(handle)

        monkeypatch.setattr(runner.bus.job_store, "read", see_read)
        monkeypatch.setattr(runner.engine, "usage", release_before_the_slot_is_free)
        ended = [await world.wait_until_ended(key) for key in (first, second)]
        await runner.drained()
    assert [(job.status, job.attempt) for job in ended] == [(Status.SUCCEEDED, 1), (Status.SUCCEEDED, 2)]


async def test_a_job_of_a_lane_that_was_empty_goes_first(world: RunnerEnvironment) -> None:
    """Its lane is fetched together with that of the waiting job, which is returned and runs next."""
    ran: list[str] = []

    async def submit_while_working(box: FakeContainer, folder: Path) -> int:
        ran.append(f"j{folder.name}")
        if len(ran) == 2:
            await world.submit("kept", "normal")
            await world.submit("kept", "high", priority=Priority.HIGH)
        return await work(box, folder)

    world.programs = {"kept": reused_program(submit_while_working)}
    world.pace = replace(world.pace, ahead_s=DEADLINE_S)  # what is looked at ahead is given back for a moment
    keys = [await world.submit("kept", f"j{number}") for number in (1, 2)]
    async with world.run_runner() as runner:
        for key in keys:
            await world.wait_until_ended(key)
        ended = [await world.wait_until_ended(JobKey("ada", id_)) for id_ in ("high", "normal")]
        await runner.drained()
    assert [job.attempt for job in ended] == [1, 1]
    assert [job.output.data["number"] for job in ended if job.output is not None] == ["3", "4"]
    await world.wait_until_clean()


async def test_a_container_stays_until_the_end_of_its_job_is_recorded(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the only proof of that end. Here the next job is cancelled meanwhile, which takes its container along."""
    keys = [await world.submit("kept", f"j{number}") for number in (1, 2)]
    claimed, recorded = anyio.Event(), anyio.Event()
    removed_early: dict[str, bool] = {}
    async with world.run_runner() as runner:
        update, remove = runner.bus.job_store.update, runner.engine.remove

        async def see_update(key: JobKey, record: JobRecord, revision: int) -> int:
            is_end = isinstance(record.event, Succeeded) and key == keys[0]
            if is_end:
                with anyio.fail_after(30):
                    await claimed.wait()
                await world.cancel(keys[1])
                await world.wait_until_ended(keys[1])
                await anyio.wait_all_tasks_blocked()
            revision = await update(key, record, revision)
            if is_end:
                recorded.set()
            elif isinstance(record.event, Started) and key == keys[1]:
                claimed.set()
            return revision

        async def see_remove(handle: str) -> None:
            removed_early.setdefault(handle, not recorded.is_set())
            await remove(handle)

        monkeypatch.setattr(runner.bus.job_store, "update", see_update)
        monkeypatch.setattr(runner.engine, "remove", see_remove)
        ended = [await world.wait_until_ended(key) for key in keys]
        await runner.drained()
    assert [job.status for job in ended] == [Status.SUCCEEDED, Status.CANCELLED]
    assert ended[0].output is not None
    assert removed_early[ended[0].output.data["box"]] is False
    await world.wait_until_clean()


async def test_a_job_that_is_lost_at_its_end_does_not_hold_up_the_next_one(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edge declares the first job failed while its end is recorded, and the next one has the container by then."""
    keys = [await world.submit("kept", f"j{number}") for number in (1, 2)]
    claimed = anyio.Event()
    async with world.run_runner() as runner:
        update = runner.bus.job_store.update

        async def see_update(key: JobKey, record: JobRecord, revision: int) -> int:
            if isinstance(record.event, Succeeded) and key == keys[0]:
                with anyio.fail_after(30):
                    await claimed.wait()
                await write(world, key, Failed(make_failure()))
            revision = await update(key, record, revision)
            if isinstance(record.event, Started) and key == keys[1]:
                claimed.set()
            return revision

        monkeypatch.setattr(runner.bus.job_store, "update", see_update)
        ended = [await world.wait_until_ended(key) for key in keys]
        await runner.drained()
    assert [job.status for job in ended] == [Status.FAILED, Status.SUCCEEDED]
    assert ended[1].attempt == 1
    assert not world.boxes
    assert [path for host in world.folder.iterdir() for path in host.iterdir()] == []


async def test_a_bug_at_the_end_of_a_job_does_not_hold_up_the_next_one(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [await world.submit("kept", f"j{number}") for number in (1, 2)]
    claimed = anyio.Event()
    async with world.run_runner() as runner:
        update = runner.bus.job_store.update

        async def fail_after_the_next_claim(key: JobKey, record: JobRecord, revision: int) -> int:
            if isinstance(record.event, Succeeded) and key == keys[0] and not claimed.is_set():
                await wait_with_deadline(claimed.wait)
                raise RuntimeError("a bug: the test said so")
            revision = await update(key, record, revision)
            if isinstance(record.event, Started) and key == keys[1]:
                claimed.set()
            return revision

        monkeypatch.setattr(runner.bus.job_store, "update", fail_after_the_next_claim)
        assert (await world.wait_until_ended(keys[1])).status is Status.SUCCEEDED


async def test_the_slot_of_a_container_that_goes_is_free_before_its_message_is_acknowledged(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the broker take long for the answer: the next job starts meanwhile."""
    keys = [await world.submit("kept", f"j{number}") for number in (1, 2)]

    async def leaks(box: FakeContainer, folder: Path) -> int:
        leave_file(box, folder)
        return await work(box, folder)

    world.programs = {"kept": reused_program(leaks)}
    acknowledge = Execution._acknowledge

    async def acknowledge_after_the_next_start(execution: Execution, job: Job) -> None:
        if job.key == keys[0]:
            await world.wait_until_running(keys[1])
        await acknowledge(execution, job)

    monkeypatch.setattr(Execution, "_acknowledge", acknowledge_after_the_next_start)
    async with world.run_runner() as runner:
        ended = [await world.wait_until_ended(key) for key in keys]
        await runner.drained()
    assert [(job.status, job.attempt) for job in ended] == [(Status.SUCCEEDED, 1)] * 2
    await world.wait_until_clean()


async def test_no_job_starts_beside_the_files_of_the_last_one(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If they cannot be taken from the container, the job gets one of its own, and is not charged."""
    clear, failed = SecretFiles.clear, anyio.Event()
    reused = reused_program(work)

    async def warm_or_cold(box: FakeContainer) -> int:
        return await (reused(box) if WARM_ENV in box.spec.env else work(box, box.spec.job_dir))

    def fail_once(folders: SecretFiles, container: Path) -> None:
        if not failed.is_set():
            failed.set()
            raise PermissionError("read-only file system")
        clear(folders, container)

    world.programs = {"kept": warm_or_cold}
    monkeypatch.setattr(SecretFiles, "clear", fail_once)
    keys = [await world.submit("kept", f"j{number}") for number in (1, 2)]
    async with world.run_runner() as runner:
        ended = [await world.wait_until_ended(key) for key in keys]
        await runner.drained()
    assert [(job.status, job.attempt) for job in ended] == [(Status.SUCCEEDED, 1)] * 2
    assert len({job.output.data["box"] for job in ended if job.output is not None}) == 2
    await world.wait_until_clean()


@pytest.mark.parametrize(("scope", "boxes"), [("owner", 2), ("endpoint", 1)])
async def test_a_container_crosses_owners_only_if_told_to(world: RunnerEnvironment, scope: str, boxes: int) -> None:
    allow(world, Reuse(scope="owner" if scope == "owner" else "endpoint"))
    async with world.run_runner() as runner:
        used = {(await run_job(world, "j1", owner))["box"] for owner in ("ada", "bob")}
        await runner.drained()
    assert len(used) == boxes


async def test_after_as_many_jobs_as_allowed_it_goes(world: RunnerEnvironment) -> None:
    allow(world, Reuse(jobs=2))
    async with world.run_runner() as runner:
        ran = [await run_job(world, f"j{number}") for number in (1, 2, 3)]
        await runner.drained()
    assert [one["number"] for one in ran] == ["1", "2", "1"]


async def test_a_container_that_is_too_old_goes(world: RunnerEnvironment) -> None:
    allow(world, Reuse(minutes=1e-9))
    async with world.run_runner() as runner:
        ran = [await run_job(world, f"j{number}") for number in (1, 2)]
        await runner.drained()
    assert [one["number"] for one in ran] == ["1", "1"]


def leave_process(box: FakeContainer, folder: Path) -> None:
    box.usage = ContainerUsage(processes=2, memory_bytes=0)


def leave_memory(box: FakeContainer, folder: Path) -> None:
    used = box.usage.memory_bytes + 8 * MIB  # of 16 MiB
    box.usage = ContainerUsage(processes=1, memory_bytes=used)


def leave_scratch(box: FakeContainer, folder: Path) -> None:
    box.usage = ContainerUsage(processes=1, memory_bytes=0, scratch_files=box.usage.scratch_files + 1)


def leave_file(box: FakeContainer, folder: Path) -> None:
    (folder.parent / "tmp" / f"model-of-{folder.name}").touch()


def take_next_folder(box: FakeContainer, folder: Path) -> None:
    (folder.parent / str(int(folder.name) + 1)).symlink_to("/etc")


Leave = Callable[[FakeContainer, Path], None]
MEASURED_BY_FIRST_JOB = (leave_memory, leave_scratch)  # what the first job needs may stay


@pytest.mark.parametrize("leave", [leave_process, leave_memory, leave_scratch, leave_file, take_next_folder])
async def test_a_container_in_which_a_job_left_something_goes(world: RunnerEnvironment, leave: Leave) -> None:
    async def leaks(box: FakeContainer, folder: Path) -> int:
        if (folder.name == "1") != (leave in MEASURED_BY_FIRST_JOB):
            leave(box, folder)
        return await work(box, folder)

    world.programs = {"kept": reused_program(leaks)}
    async with world.run_runner() as runner:
        ran = [await run_job(world, f"j{number}") for number in (1, 2, 3)]
        await runner.drained()
    first = ["1", "2", "1"] if leave in MEASURED_BY_FIRST_JOB else ["1", "1", "1"]
    assert [one["number"] for one in ran] == first
    await world.wait_until_clean()


async def test_no_file_in_tmp_goes_from_one_owner_to_the_next(world: RunnerEnvironment) -> None:
    async def leaks(box: FakeContainer, folder: Path) -> int:
        leave_scratch(box, folder)
        return await work(box, folder)

    allow(world, Reuse(scope="endpoint"))
    world.programs = {"kept": reused_program(leaks)}
    async with world.run_runner() as runner:
        ran = [await run_job(world, f"j{number}", owner) for number, owner in ((1, "ada"), (2, "bob"))]
        await runner.drained()
    assert [one["number"] for one in ran] == ["1", "1"]


@pytest.mark.parametrize(("code", "status"), [(65, "bad_input"), (64, "bad_job")])
async def test_a_bad_input_fails_its_job_and_not_the_container(
    world: RunnerEnvironment, code: int, status: str
) -> None:
    async def refuses(box: FakeContainer, folder: Path) -> int:
        return code if folder.name == "1" else await work(box, folder)

    world.programs = {"kept": reused_program(refuses)}
    async with world.run_runner() as runner:
        failed = await world.wait_until_ended(await world.submit("kept", "j1"))
        second = await run_job(world, "j2")
        await runner.drained()
    assert failed.error is not None
    assert (failed.error.code, second["number"]) == (status, "2")


@pytest.mark.parametrize("code", [ExitCode.INTERNAL, ExitCode.GPU_UNUSABLE, 1])
async def test_after_a_failure_of_the_program_its_container_runs_no_other_job(
    world: RunnerEnvironment, code: int
) -> None:
    codes = iter([code])

    async def fails_once(box: FakeContainer, folder: Path) -> int:
        return next(codes, None) or await work(box, folder)

    world.programs = {"kept": reused_program(fails_once)}
    with capture_logs() as logs:
        async with world.run_runner() as runner:
            ended = await world.wait_until_ended(await world.submit("kept", "j1"))
            await runner.drained()
    reasons = [entry["reason"] for entry in logs if entry["event"] == "container_not_kept"]
    assert reasons[0] == f"stopped, or exit code {code}"
    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 2)
    assert ended.output is not None
    assert ended.output.data["number"] == "1"


async def test_a_container_that_went_with_its_job_does_not_keep_the_volumes_of_its_endpoint(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_use: list[Callable[[], list[LocalEndpoint]]] = []

    class Volumes(HostVolumes):
        def __init__(self, *parts: Any) -> None:
            in_use.append(parts[-1])
            super().__init__(*parts)

    async def fails(_: FakeContainer, __: Path) -> int:
        return ExitCode.INTERNAL

    monkeypatch.setattr(lifecycle, "HostVolumes", Volumes)
    world.programs = {"kept": reused_program(fails)}
    allow(world, Reuse(), warm=False)
    async with world.run_runner():
        assert (await world.wait_until_ended(await world.submit("kept", "j1"))).status is Status.FAILED
        (used_endpoints,) = in_use

        async def is_unused() -> bool:
            return not used_endpoints()

        await wait_for(is_unused)


async def test_a_crash_charges_the_job_inside_alone(world: RunnerEnvironment) -> None:
    crashes = iter([False, True])

    async def crash(box: FakeContainer, folder: Path) -> int:
        if next(crashes, False):
            raise EndBySignal(139)
        return await work(box, folder)

    world.programs = {"kept": reused_program(crash)}
    async with world.run_runner() as runner:
        first = await world.wait_until_ended(await world.submit("kept", "j1"))
        second = await world.wait_until_ended(await world.submit("kept", "j2"))
        await runner.drained()
    assert (first.status, first.charged_attempts) == (Status.SUCCEEDED, 0)
    assert (second.status, second.charged_attempts, second.attempt) == (Status.SUCCEEDED, 1, 2)
    assert second.output is not None
    assert second.output.data["number"] == "1"
    await world.wait_until_clean()


async def test_a_job_that_deletes_its_folder_fails_and_costs_no_slot(world: RunnerEnvironment) -> None:
    """The process engine may run jobs as the runner's own user, who may delete the folder."""

    async def deletes(box: FakeContainer, folder: Path) -> int:
        if folder.name == "1":
            shutil.rmtree(folder)
            return 0
        return await work(box, folder)

    world.programs = {"kept": reused_program(deletes)}
    async with world.run_runner() as runner:
        failed = await world.wait_until_ended(await world.submit("kept", "j1", policy=Policy(max_attempts=1)))
        assert (await run_job(world, "j2"))["number"] == "2"
        assert not runner.host.slots.poisoned
        await runner.drained()
    assert failed.error is not None
    assert failed.error.code == "output_missing"
    await world.wait_until_clean()


async def test_a_cancelled_job_takes_its_container_along(world: RunnerEnvironment) -> None:
    started = anyio.Event()

    async def hangs(box: FakeContainer, folder: Path) -> int:
        if folder.name == "2":
            started.set()
            await anyio.sleep_forever()
        return await work(box, folder)

    world.programs = {"kept": reused_program(hangs)}
    async with world.run_runner() as runner:
        first = await run_job(world, "j1")
        key = await world.submit("kept", "j2")
        with anyio.fail_after(30):
            await started.wait()
        await world.cancel(key)
        cancelled = await world.wait_until_ended(key)

        async def is_gone() -> bool:
            return first["box"] not in world.boxes

        await wait_for(is_gone)
        await runner.drained()
    assert cancelled.status is Status.CANCELLED


async def test_a_container_whose_job_ended_after_it_was_cancelled_runs_no_other_job(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, stopped = anyio.Event(), anyio.Event()

    async def ends_when_stopped(box: FakeContainer, folder: Path) -> int:
        started.set()
        await stopped.wait()
        return await work(box, folder)

    async def stop(*_: object, **__: object) -> None:
        stopped.set()

    world.programs = {"kept": reused_program(ends_when_stopped)}
    async with world.run_runner() as runner:
        monkeypatch.setattr(runner.engine, "stop", stop)
        key = await world.submit("kept", "j1")
        await wait_with_deadline(started.wait)
        await world.cancel(key)
        assert (await world.wait_until_ended(key)).status is Status.CANCELLED
        assert (await run_job(world, "j2"))["number"] == "1"
        await runner.drained()
    await world.wait_until_clean()


async def test_a_container_whose_job_was_adopted_runs_no_other_job(world: RunnerEnvironment) -> None:
    """What it was like before its first job is not known to the next runner process."""
    allow(world, Reuse(), warm=False)
    started = anyio.Event()

    async def hangs(box: FakeContainer, folder: Path) -> int:
        started.set()
        await anyio.sleep_forever()
        return 0

    world.programs = {"kept": reused_program(hangs)}
    async with world.run_runner():
        key = await world.submit("kept", "j1")
        await wait_with_deadline(started.wait)
    (box,) = world.boxes.values()
    await work(box, box.spec.job_dir / "1")
    for stream in STREAMS:
        box.write(b'{"type":"end","code":0}\n', stream)
    world.programs = {"kept": reused_program(work)}
    async with world.run_runner("i2") as runner:
        ended = await world.wait_until_ended(key)
        second = await run_job(world, "j2")
        await runner.drained()
    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 1)
    assert second["number"] == "1"
    assert not world.boxes


async def test_a_program_that_does_not_loop_ends_its_container(world: RunnerEnvironment) -> None:
    """jobkit without `reuse=True` does that: the job ends with the exit of its container."""

    async def program(box: FakeContainer) -> int:
        await wait_for_start_line(box, 1)
        return await work(box, box.spec.job_dir / "1")

    world.programs = {"kept": program}
    async with world.run_runner() as runner:
        ran = [await run_job(world, f"j{number}") for number in (1, 2)]
        await runner.drained()
    assert [one["number"] for one in ran] == ["1", "1"]
    assert ran[0]["box"] != ran[1]["box"]
