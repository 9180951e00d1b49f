"""Recovery: every state of a container and of its record, and the action for each."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from runner.assets.container_folders import SecretFiles
from runner.claiming import recovery
from runner.claiming.recovery import (
    ContainerRecovery,
    RecoveryAction,
    choose_recovery_action,
    container_folders,
    parse_container_folder,
    resolve_claimed,
)
from runner.engines.port import (
    MIB,
    NO_JOB,
    ContainerIdentity,
    ContainerLimits,
    ContainerSpec,
    ContainerState,
    FoundContainer,
)
from runner.execution.container_run import ContainerRun
from runner.execution.durable_state import CheckpointFile, FencedJob
from runner.execution.execution import Execution, ExecutionRegistry
from runner.execution.verdict import StopReason
from runner.execution.warm_container import write_warm_assignment
from runner.host_facts import TimeLeft
from schemas.endpoint import Timeouts
from schemas.events import (
    Adopted,
    AttemptReleased,
    FeedMessage,
    JobRecord,
    LogMessage,
    ProgressMessage,
    RecordUnreadable,
    Started,
    Submitted,
)
from schemas.job import Claim, Job, JobKey, OutputFile, Status
from schemas.lifecycle import next_record
from tests.runner.warm_programs import wait_for_start_line, warm_endpoint
from tests.support.fake_engine import FakeContainer
from tests.support.runner_environment import RunnerEnvironment, wait_with_deadline, write_outputs
from tests.support.schema_samples import make_claim, make_job
from tests.support.wait import wait_for

HOST = "gpu-1"


def gave_back(code: str) -> JobRecord:
    """Return the record of an attempt that was released for that reason, and that no host has claimed since."""
    queued = make_job(Status.QUEUED, attempt=1, claim=make_claim(1))
    return JobRecord(datetime.now(UTC), AttemptReleased(code, charged=code == "internal"), queued)


ADOPTING = [
    # state, round and attempt of the container, the record, what becomes of it
    ("running", (1, 1), make_job(Status.RUNNING), RecoveryAction.FOLLOW),
    ("exited", (1, 1), make_job(Status.RUNNING), RecoveryAction.FOLLOW),
    ("exited", (1, 1), make_job(Status.CANCELLING), RecoveryAction.FOLLOW),
    ("running", (1, 1), gave_back("host_lost"), RecoveryAction.FOLLOW),
    ("exited", (1, 1), gave_back("internal"), RecoveryAction.REMOVE),
    ("exited", (1, 1), gave_back("drained"), RecoveryAction.REMOVE),
    ("running", (1, 1), gave_back("engine_error"), RecoveryAction.REMOVE),
    ("created", (1, 1), make_job(Status.RUNNING), RecoveryAction.RELEASE),
    ("created", (1, 1), gave_back("host_lost"), RecoveryAction.RELEASE),
    ("running", (1, 1), make_job(Status.RUNNING, attempt=2, claim=make_claim(2)), RecoveryAction.REMOVE),
    ("running", (1, 3), make_job(Status.RUNNING, round=2), RecoveryAction.REMOVE),
    ("running", (1, 1), make_job(Status.RUNNING, claim=make_claim(1, host="other")), RecoveryAction.REMOVE),
    ("running", (1, 1), make_job(Status.QUEUED, attempt=1, claim=None), RecoveryAction.REMOVE),
    ("exited", (1, 1), make_job(Status.SUCCEEDED), RecoveryAction.REMOVE),
    ("exited", (1, 1), None, RecoveryAction.REMOVE),
    ("running", (1, 2), make_job(Status.RUNNING), RecoveryAction.LEAVE),
]


def found(state: ContainerState, round_: int = 1, attempt: int = 1, name: str = "j1") -> FoundContainer:
    mine = ContainerIdentity(installation="test", host=HOST, owner="ada", job=name, round=round_, attempt=attempt)
    return FoundContainer("box", mine, state)


@pytest.mark.parametrize(("state", "place", "record", "becomes"), ADOPTING)
def test_the_fate_of_a_container(
    state: ContainerState, place: tuple[int, int], record: Job | JobRecord | None, becomes: RecoveryAction
) -> None:
    event = Started(record.claim) if isinstance(record, Job) and record.claim else Submitted()
    recorded = JobRecord(datetime.now(UTC), event, record) if isinstance(record, Job) else record
    assert choose_recovery_action(found(state, *place), recorded, HOST) is becomes


@pytest.mark.parametrize("record", [None, gave_back("host_lost")])
def test_a_warm_container_without_a_job_goes(record: JobRecord | None) -> None:
    assert choose_recovery_action(found("running", name=NO_JOB), record, HOST) is RecoveryAction.REMOVE


def test_only_folders_of_attempts_and_warm_containers_belong_to_containers(tmp_path: Path) -> None:
    for name in ("warm-1", "ada.j1.1.1", "ada.j1.1", "ada.j1.1.1.1", "scratch"):
        (tmp_path / name).mkdir()
    assert [folder.name for folder in container_folders(tmp_path)] == ["ada.j1.1.1", "warm-1"]


@pytest.fixture
def world(tmp_path: Path) -> RunnerEnvironment:
    return RunnerEnvironment(tmp_path)


async def left_running(
    world: RunnerEnvironment,
    status: Status = Status.RUNNING,
    *,
    host: str = HOST,
    gpus: str | None = None,
    name: str = "j1",
) -> Job:
    """Write the record of a job that the previous runner process, i0, claimed on this host."""
    key = await world.submit("well", name)
    entry = await world.edge.job_store.read(key)
    assert entry is not None
    running = replace(entry.record.job, status=status, attempt=1, claim=Claim(host, "i0", 1, gpus))
    now = datetime.now(UTC)
    await world.edge.job_store.update(key, JobRecord(now, Submitted(), running), entry.revision)
    return running


def box_of(world: RunnerEnvironment, left: Job, state: ContainerState) -> FakeContainer:
    """Return its container, as the engine kept it."""
    folder = world.folder / HOST / f"ada.{left.id}.1.1"
    (folder / "job" / "out").mkdir(parents=True)
    mine = ContainerIdentity(installation="test", host=HOST, owner="ada", job=left.id, round=1, attempt=1)
    spec = ContainerSpec(identity=mine, image="well", job_dir=folder / "job", limits=ContainerLimits(1, 1.0))
    box = FakeContainer("left-1", spec, lambda: datetime.now(UTC))
    world.boxes[box.handle] = box
    if state != "created":
        box.begin()
        box.write(b"from before\n")
    if state == "exited":
        write_outputs(box, {"r.txt": b"r"})
        box.finish(0)
    return box


async def test_an_exited_container_is_collected(world: RunnerEnvironment) -> None:
    left = await left_running(world)
    box_of(world, left, "exited")
    async with world.run_runner():
        ended = await world.wait_until_ended(left.key)
        await world.wait_until_clean()
    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 1)
    assert await world.log_text(left.key) == "from before\n"
    assert (await world.event_types(left.key))[-2:] == ["Adopted", "Succeeded"]


async def test_a_running_container_is_followed(world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check also that only a job that ran here from its start tells how long such jobs run."""
    noted: list[str] = []
    monkeypatch.setattr(TimeLeft, "note_run", lambda _self, endpoint, _run_s: noted.append(endpoint))
    left = await left_running(world)
    box = box_of(world, left, "running")
    async with world.run_runner() as runner:
        await world.wait_for_event(left.key, Adopted)
        box.write(b"and after\n")
        write_outputs(box)
        box.finish(0)
        ended = await world.wait_until_ended(left.key)
        await world.wait_until_ended(await world.submit("well", "j2"))
        await runner.drained()
    assert ended.status is Status.SUCCEEDED
    assert world.assets.text(ended.log) == "from before\nand after\n"
    assert noted == ["well"]


async def test_a_container_that_never_ran_costs_nothing(world: RunnerEnvironment) -> None:
    left = await left_running(world)
    box_of(world, left, "created")
    async with world.run_runner():
        ended = await world.wait_until_ended(left.key)
        await world.wait_until_clean()
    assert (ended.status, ended.attempt, ended.charged_attempts) == (Status.SUCCEEDED, 2, 0)
    assert ended.free_releases == {"host_lost": 1}


async def test_the_attempt_of_a_container_that_never_ran_is_released_at_the_start_of_the_runner(
    world: RunnerEnvironment,
) -> None:
    world.slots = 0  # so that no message leads to the job
    left = await left_running(world)
    box_of(world, left, "created")
    async with world.run_runner():
        released = await world.job(left.key)
        assert not world.boxes
    assert (released.status, released.free_releases) == (Status.QUEUED, {"host_lost": 1})


async def test_a_container_that_never_ran_is_removed_if_its_attempt_was_released_already(
    world: RunnerEnvironment,
) -> None:
    left = await left_running(world)
    entry = await world.edge.job_store.read(left.key)
    assert entry is not None
    released = next_record(left, AttemptReleased("host_lost"), datetime.now(UTC))
    await world.edge.job_store.update(left.key, released, entry.revision)
    box_of(world, left, "created")
    async with world.run_runner():
        ended = await world.wait_until_ended(left.key)
        await world.wait_until_clean()
    assert (ended.status, ended.attempt, ended.free_releases) == (Status.SUCCEEDED, 2, {"host_lost": 1})


async def test_a_container_that_is_gone_costs_nothing(world: RunnerEnvironment) -> None:
    """Check the cases that only its folder is left, or nothing: then its message leads to the job."""
    left = await left_running(world)
    async with world.run_runner():
        ended = await world.wait_until_ended(left.key)
    assert (ended.status, ended.attempt, ended.free_releases) == (Status.SUCCEEDED, 2, {"host_lost": 1})


async def test_a_folder_without_a_container_goes(world: RunnerEnvironment) -> None:
    left = await left_running(world)
    (world.folder / HOST / "ada.j1.1.1" / "job").mkdir(parents=True)
    async with world.run_runner():
        ended = await world.wait_until_ended(left.key)
        await world.wait_until_clean()
    assert (ended.status, ended.free_releases) == (Status.SUCCEEDED, {"host_lost": 1})


async def test_a_cancelled_one_is_stopped_by_the_next_life(world: RunnerEnvironment) -> None:
    left = await left_running(world, Status.CANCELLING)
    box_of(world, left, "running")
    async with world.run_runner():
        ended = await world.wait_until_ended(left.key)
        await world.wait_until_clean()
    assert ended.status is Status.CANCELLED


async def test_a_container_of_a_final_job_goes(world: RunnerEnvironment) -> None:
    left = await left_running(world, Status.SUCCEEDED)
    box_of(world, left, "exited")
    async with world.run_runner():
        await world.wait_until_clean()
    assert await world.event_types(left.key) == ["Submitted", "Submitted"]


async def test_containers_of_another_installation_are_left_alone(world: RunnerEnvironment) -> None:
    left = await left_running(world)
    box = box_of(world, left, "running")
    box.spec = replace(box.spec, identity=replace(box.spec.identity, installation="other"))
    async with world.run_runner():
        await world.wait_until_ended(left.key)
    assert box.state == "running"


async def test_killed_again_and_again_its_output_is_said_once(world: RunnerEnvironment) -> None:
    """Kill runners at any point; followers see no gap, no repetition, rising offsets, and the last line."""
    left = await left_running(world)
    box = box_of(world, left, "running")
    printed = kept = "from before\n"
    for number in range(6):
        async with world.run_runner(f"i{number + 1}"):
            line = f"line {number}\n"
            metrics = f'{{"type":"metric","name":"lives","value":{number}}}\n'
            metrics += f'{{"type":"metric","name":"life {number}","value":1}}\n'
            printed, kept = printed + line, kept + line + metrics
            box.write(line.encode() + b'{"type":"progress","fraction":0.%d}\n' % number + metrics.encode())

            async def said(text: str = line) -> bool:
                return text in await world.log_text(left.key)

            if number % 2:
                await wait_for(said)
    write_outputs(box)
    box.finish(0)
    async with world.run_runner("last"):
        ended = await world.wait_until_ended(left.key)
        await world.wait_until_clean()
    notes = await world.notes(left.key)
    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 1)
    assert await world.log_text(left.key) == printed
    assert world.assets.text(ended.log) == kept
    assert {(metric.name, metric.value) for metric in ended.metrics} == {
        ("lives", 5.0),
        *((f"life {number}", 1.0) for number in range(6)),
    }
    assert rising(notes, LogMessage)
    assert rising(notes, ProgressMessage)


def rising(notes: list[FeedMessage], kind: type[FeedMessage]) -> bool:
    offsets = [note.position.offset for note in notes if isinstance(note, kind)]
    return len(offsets) > 0 and offsets == sorted(set(offsets))


async def test_a_drain_waits_for_the_grace(world: RunnerEnvironment) -> None:
    world.grace_s = 5.0
    go = anyio.Event()

    async def soon(box: FakeContainer) -> int:
        await go.wait()
        write_outputs(box)
        return 0

    world.programs["soon"] = soon
    key = await world.submit("soon")
    async with world.run_runner() as runner:
        await world.wait_for_container()
        runner.stop.set()
        late = await world.submit("well", "late")
        go.set()
        await wait_with_deadline(runner.gone.wait)
    assert (await world.job(key)).status is Status.SUCCEEDED
    assert (await world.job(late)).status is Status.QUEUED
    assert await world.edge.heartbeats.get(HOST) is None


async def test_a_drain_leaves_containers_to_the_next_life(world: RunnerEnvironment) -> None:
    left = await left_running(world)
    box = box_of(world, left, "running")
    async with world.run_runner("i1") as runner:
        await world.wait_for_event(left.key, Adopted)
        await runner.drained()
    assert (await world.job(left.key)).status is Status.RUNNING
    write_outputs(box)
    box.finish(0)
    async with world.run_runner("i2"):
        ended = await world.wait_until_ended(left.key)
    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 1)


@pytest.mark.parametrize(("kind", "step"), [(FencedJob, "record"), (Execution, "_clean_up")])
async def test_a_drain_finishes_a_job_whose_end_is_recorded(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch, kind: type, step: str
) -> None:
    begun, after_grace = anyio.Event(), anyio.Event()
    take_step, wait_until = getattr(kind, step), ExecutionRegistry.wait_until
    waits: list[object] = []

    async def take_step_after_grace(*args: Any) -> Any:
        begun.set()
        await after_grace.wait()
        return await take_step(*args)

    async def wait_and_open(executions: ExecutionRegistry, condition: Any) -> None:
        waits.append(condition)
        if len(waits) == 2:  # the first wait is for the grace
            after_grace.set()
        await wait_until(executions, condition)

    monkeypatch.setattr(kind, step, take_step_after_grace)
    monkeypatch.setattr(ExecutionRegistry, "wait_until", wait_and_open)
    key = await world.submit("well")
    async with world.run_runner() as runner:
        await wait_with_deadline(begun.wait)
        await runner.drained()
    assert (await world.job(key)).status is Status.SUCCEEDED
    await world.wait_until_clean()
    assert await world.edge.heartbeats.get(HOST) is None


async def test_a_drain_stops_and_releases_what_cannot_be_left(world: RunnerEnvironment) -> None:
    world.leave = False
    key = await world.submit("waits")
    async with world.run_runner() as runner:
        await world.wait_for_container()
        await runner.drained()
        drained = await world.job(key)
    assert (drained.status, drained.charged_attempts, drained.free_releases) == (Status.QUEUED, 0, {"drained": 1})
    assert not world.boxes


async def test_a_drain_stops_a_job_whose_checkpoint_is_still_being_read(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.leave = False
    load, stop, gate = CheckpointFile.load, Execution.stop, anyio.Event()

    async def load_after_stop(checkpoint: CheckpointFile) -> None:
        await gate.wait()
        await load(checkpoint)

    async def stop_and_open(execution: Execution, reason: StopReason) -> None:
        await stop(execution, reason)
        gate.set()

    monkeypatch.setattr(CheckpointFile, "load", load_after_stop)
    monkeypatch.setattr(Execution, "stop", stop_and_open)
    left = await left_running(world)
    box_of(world, left, "running")
    async with world.run_runner() as runner:
        await world.wait_for_event(left.key, Adopted)
        await runner.drained()
        drained = await world.job(left.key)
    assert (drained.status, drained.free_releases) == (Status.QUEUED, {"drained": 1})
    assert not world.boxes


async def test_a_container_that_is_followed_keeps_its_gpus_until_it_ends(world: RunnerEnvironment) -> None:
    """Else another job would be placed on them while the container runs."""
    left = await left_running(world, gpus="GPU-a,GPU-b")
    box = box_of(world, left, "running")
    async with world.run_runner() as runner:
        adopted = await world.wait_for_event(left.key, Adopted)
        assert adopted.claim is not None
        assert adopted.claim.gpu_uuids == ("GPU-a", "GPU-b")
        assert [runner.host.gpu_allocator.is_in_use(uuid) for uuid in ("GPU-a", "GPU-b", "GPU-c")] == [
            True,
            True,
            False,
        ]
        write_outputs(box)
        box.finish(0)
        await world.wait_until_ended(left.key)
        await world.wait_until_clean()
        assert not runner.host.gpu_allocator.is_in_use("GPU-a")


@pytest.mark.parametrize(
    ("status", "host", "numbers", "released"),
    [
        (Status.RUNNING, HOST, "1.1", True),
        (Status.CANCELLING, HOST, "1.1", True),
        (Status.RUNNING, "other", "1.1", False),
        (Status.SUCCEEDED, HOST, "1.1", False),
        (Status.RUNNING, HOST, "1.2", False),
        (Status.RUNNING, HOST, "2.1", False),
    ],
)
async def test_a_folder_without_a_container_releases_the_attempt_that_the_record_gives_this_host(
    world: RunnerEnvironment, status: Status, host: str, numbers: str, released: bool
) -> None:
    world.slots = 0  # so that no message leads to the job
    left = await left_running(world, status, host=host)
    folder = world.folder / HOST / f"ada.{left.id}.{numbers}"
    folder.mkdir(parents=True)
    async with world.run_runner():
        assert not folder.exists()
    expected = ["Submitted", "Submitted", *(["AttemptReleased"] if released else [])]
    assert await world.event_types(left.key) == expected


async def test_a_folder_without_a_container_changes_no_job_that_no_host_has_claimed(world: RunnerEnvironment) -> None:
    world.slots = 0  # so that no message leads to the job
    key = await world.submit("well")
    folder = world.folder / HOST / "ada.j1.1.0"
    folder.mkdir(parents=True)
    async with world.run_runner():
        assert not folder.exists()
    assert await world.event_types(key) == ["Submitted"]


async def test_secrets_of_a_container_that_is_gone_are_removed(world: RunnerEnvironment) -> None:
    world.secrets = SecretFiles(world.folder.with_name(f"{world.folder.name}.secrets"))
    left = await left_running(world)
    box = box_of(world, left, "running")
    used, orphan = (world.folder / HOST / name for name in (box.spec.identity.folder, "ada.j0.1.1"))
    for container in (used, orphan):
        world.secrets.write(container, {"HF_TOKEN": "hf_1"})
    async with world.run_runner():
        assert not world.secrets.folder(orphan).exists()
        assert world.secrets.read(used) == {"HF_TOKEN": "hf_1"}


async def test_a_container_whose_record_changes_while_it_is_recovered_is_recovered_by_the_new_record(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.slots = 0  # so that no message leads to the job
    left = await left_running(world)
    box_of(world, left, "running")
    update = type(world.edge.job_store).update

    async def update_after_cancel(store: Any, key: JobKey, record: JobRecord, revision: int) -> int:
        monkeypatch.undo()
        await world.cancel(key)
        return await update(store, key, record, revision)

    monkeypatch.setattr(type(world.edge.job_store), "update", update_after_cancel)
    async with world.run_runner():
        ended = await world.wait_until_ended(left.key)
    assert ended.status is Status.CANCELLED
    assert (await world.event_types(left.key))[-3:] == ["CancelRequested", "Adopted", "Cancelled"]


async def test_a_container_that_is_followed_has_the_limits_of_its_endpoint(world: RunnerEnvironment) -> None:
    world.timeouts = Timeouts(base_s=0.05, grace_s=0.1)
    left = await left_running(world)
    box_of(world, left, "running")
    async with world.run_runner():
        ended = await world.wait_until_ended(left.key)
    assert ended.error is not None
    assert ended.error.code == "execution_timeout"


async def test_a_container_of_an_endpoint_that_the_host_no_longer_has_is_followed_without_a_disk_limit(
    world: RunnerEnvironment,
) -> None:
    left = await left_running(world)
    box = box_of(world, left, "running")
    world.kinds = {"other": warm_endpoint("other", world.folder)}
    async with world.run_runner():
        await world.wait_for_event(left.key, Adopted)
        write_outputs(box, {"r.txt": bytes(2 * MIB)})
        box.finish(0)
        ended = await world.wait_until_ended(left.key)
    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 1)


async def test_a_warm_container_whose_claim_is_gone_is_followed_as_that_of_one_job(world: RunnerEnvironment) -> None:
    left = await left_running(world)
    box = box_of(world, left, "running")
    folder = world.folder / HOST / "warm-1"
    (folder / "job").mkdir(parents=True)
    box.spec = replace(box.spec, identity=replace(box.spec.identity, warm_dir=folder.name), job_dir=folder / "job")
    async with world.run_runner():
        await world.wait_for_event(left.key, Adopted)
        write_outputs(box)
        box.finish(0)
        ended = await world.wait_until_ended(left.key)
        await world.wait_until_clean()
    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 1)
    assert not folder.exists()


async def test_a_warm_container_that_has_its_claim_and_no_start_line_gets_the_line(world: RunnerEnvironment) -> None:
    left = await left_running(world)
    folder = world.folder / HOST / "warm-1"
    (folder / "job" / "out").mkdir(parents=True)
    waiting = ContainerIdentity(installation="test", host=HOST, warm_dir=folder.name)
    write_warm_assignment(folder, replace(waiting, owner="ada", job=left.id, round=1, attempt=1))
    spec = ContainerSpec(identity=waiting, image="well", job_dir=folder / "job", limits=ContainerLimits(1, 1.0))
    box = FakeContainer("left-1", spec, lambda: datetime.now(UTC))
    world.boxes[box.handle] = box
    box.begin()

    async def work() -> None:
        await wait_for_start_line(box)
        write_outputs(box)
        box.finish(0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await wait_for(anyio.Path(folder / "job" / "start.sock").exists)
        async with world.run_runner():
            ended = await world.wait_until_ended(left.key)
            await world.wait_until_clean()
        tasks.cancel_scope.cancel()
    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 1)
    assert (await world.event_types(left.key))[-2:] == ["Adopted", "Succeeded"]


async def test_a_container_that_the_next_job_has_is_not_followed_as_that_of_the_last_one(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, following = await left_running(world), await left_running(world, name="j2")
    folder = world.folder / HOST / "warm-1"
    (folder / "job" / "out").mkdir(parents=True)
    waiting = ContainerIdentity(installation="test", host=HOST, warm_dir=folder.name)
    write_warm_assignment(folder, replace(waiting, owner="ada", job=left.id, round=1, attempt=1))
    spec = ContainerSpec(identity=waiting, image="well", job_dir=folder / "job", limits=ContainerLimits(1, 1.0))
    box = FakeContainer("left-1", spec, lambda: datetime.now(UTC))
    world.boxes[box.handle] = box
    box.begin()

    def assign_next_job(jobs_dir: Path, containers: list[FoundContainer]) -> list[FoundContainer]:
        seen = resolve_claimed(jobs_dir, containers)
        write_warm_assignment(folder, replace(waiting, owner="ada", job=following.id, round=1, attempt=1))
        return seen

    monkeypatch.setattr(recovery, "resolve_claimed", assign_next_job)
    async with world.run_runner():
        await world.wait_for_event(left.key, AttemptReleased)
    assert "Adopted" not in await world.event_types(left.key)


def test_only_a_warm_container_without_a_job_takes_the_job_of_its_claim(tmp_path: Path) -> None:
    claimed = found("running", name="claimed").identity
    for folder in (tmp_path, tmp_path / "warm-1"):
        folder.mkdir(exist_ok=True)
        write_warm_assignment(folder, claimed)
    warm = replace(found("running", name=NO_JOB), identity=ContainerIdentity(installation="test", host=HOST))
    waiting = replace(warm, identity=replace(warm.identity, warm_dir="warm-1"))
    elsewhere = replace(warm, identity=replace(warm.identity, warm_dir="warm-2"))
    working = replace(waiting, identity=replace(waiting.identity, job="j7"))
    containers = [warm, waiting, elsewhere, working]
    assert resolve_claimed(tmp_path, containers) == [warm, replace(waiting, identity=claimed), elsewhere, working]


@pytest.mark.parametrize(
    ("name", "attempt"),
    [
        ("ada.j1.2.3", (JobKey("ada", "j1"), 2, 3)),
        ("ada.j1.2.x", None),
        ("ada.j1.x.3", None),
        ("ada.j 1.2.3", None),
        ("a da.j1.2.3", None),
        ("ada.j1.2.3333333333", None),
        ("warm-1", None),
    ],
)
def test_a_folder_names_its_attempt(tmp_path: Path, name: str, attempt: tuple[JobKey, int, int] | None) -> None:
    assert parse_container_folder(tmp_path / name) == attempt


def test_the_folder_of_a_warm_container_names_the_attempt_that_it_was_assigned(tmp_path: Path) -> None:
    folder = tmp_path / "warm-1"
    folder.mkdir()
    write_warm_assignment(folder, found("running", 2, 3).identity)
    assert parse_container_folder(folder) == (JobKey("ada", "j1"), 2, 3)


async def test_a_slot_whose_container_is_gone_is_used_again(world: RunnerEnvironment) -> None:
    """Crash an execution at its upload, and lose its container at the same moment."""
    upload, crashed = world.assets.upload, anyio.Event()

    async def crash_once(owner: str, path: Path, name: str) -> OutputFile:
        world.assets.upload = upload  # type: ignore[method-assign]
        world.boxes.clear()
        crashed.set()
        raise RuntimeError("a bug: the test said so")

    world.assets.upload = crash_once  # type: ignore[method-assign]
    first = await world.submit("well")
    async with world.run_runner():
        await wait_with_deadline(crashed.wait)
        second = await world.submit("well", "j2")
        assert (await world.wait_until_ended(second)).status is Status.SUCCEEDED
        world.clock.ahead += 31  # the message of the first one comes again
        ended = await world.wait_until_ended(first)
    assert (ended.status, ended.attempt, ended.free_releases) == (Status.SUCCEEDED, 2, {"host_lost": 1})


async def test_a_container_whose_execution_crashed_keeps_its_gpus_until_it_is_recovered(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def crash(_: ContainerRun) -> None:
        raise RuntimeError("a bug: the test said so")

    monkeypatch.setattr(ContainerRun, "run", crash)
    world.pace = replace(world.pace, sweep_s=3600.0)  # nothing recovers it
    left = await left_running(world, gpus="GPU-a")
    box = box_of(world, left, "running")
    async with world.run_runner() as runner:

        async def has_crashed() -> bool:
            return bool(runner.host.slots.poisoned)

        await wait_for(has_crashed)
        await anyio.wait_all_tasks_blocked()
        assert box.state == "running"
        assert runner.host.gpu_allocator.is_in_use("GPU-a")
        runner.host.slots.clear_poison(left.key)
        assert not runner.host.gpu_allocator.is_in_use("GPU-a")


async def test_a_slot_stays_taken_while_the_record_of_its_container_cannot_be_read(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def crash(_: ContainerRun) -> None:
        raise RuntimeError("a bug: the test said so")

    async def read_nothing(key: JobKey) -> None:
        raise RecordUnreadable(f"{key.owner}/{key.id}: the test said so")

    monkeypatch.setattr(ContainerRun, "run", crash)
    world.pace = replace(world.pace, sweep_s=3600.0)  # only the test recovers slots
    left = await left_running(world)
    box_of(world, left, "running")
    async with world.run_runner() as runner, anyio.create_task_group() as tasks:

        async def has_crashed() -> bool:
            return bool(runner.host.slots.poisoned)

        await wait_for(has_crashed)
        monkeypatch.setattr(runner.context.bus.job_store, "read", read_nothing)
        executions = ExecutionRegistry(runner.context, tasks, lambda _: None)
        recovery = ContainerRecovery(runner.context, runner.host, executions)
        await recovery.recover_poisoned_slots()
        assert runner.host.slots.poisoned == {left.key}
        world.boxes.clear()
        await recovery.recover_poisoned_slots()
        assert not runner.host.slots.poisoned


async def test_a_container_whose_execution_crashed_is_followed_again_by_the_next_sweep(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ContainerRun.run

    async def crash_once(_: ContainerRun) -> None:
        monkeypatch.setattr(ContainerRun, "run", run)
        raise RuntimeError("a bug: the test said so")

    monkeypatch.setattr(ContainerRun, "run", crash_once)
    world.slots = 0  # so that no message leads to the job
    left = await left_running(world)
    box_of(world, left, "exited")
    async with world.run_runner():
        ended = await world.wait_until_ended(left.key)
    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 1)


async def test_a_gpu_that_a_job_could_not_use_is_marked(world: RunnerEnvironment) -> None:
    left = await left_running(world, gpus="GPU-a")
    box = box_of(world, left, "running")
    async with world.run_runner() as runner:
        await world.wait_for_event(left.key, Adopted)
        box.finish(69)
        released = await world.wait_for_event(left.key, AttemptReleased)
        assert released.free_releases == {"gpu_unhealthy": 1}
        assert runner.host.gpu_allocator._health_of("GPU-a").needs_probe
        assert not runner.host.gpu_allocator._health_of("GPU-b").needs_probe
