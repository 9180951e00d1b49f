"""Decision about a queue message by its record, spelled out by hand. Also slots, staging and endpoints."""

from datetime import timedelta
from pathlib import Path

import pytest

from bus.interface import VersionedRecord
from runner.claiming.loop import Ack, AdoptOwn, ClaimDecision, HeldElsewhere, Nak, Start, decide
from runner.endpoints import group_by_pool, load_endpoints
from runner.execution.job_files import INPUT_LENGTH_LIMIT_S, assign_file_names, job_timeouts, substitute_file_names
from runner.slots import Slots
from schemas.asset import asset_fields
from schemas.container_protocol import JobTimeouts
from schemas.endpoint import Endpoint, EndpointInvalid, Timeouts
from schemas.events import JobRecord, Submitted
from schemas.host import HOST_ENDPOINTS_LIMIT
from schemas.job import Job, JobKey, Pointer, Policy, Priority, Status
from tests.support.schema_samples import NOW, make_claim, make_job

HOST = "gpu-1"


def entry(record: Job) -> VersionedRecord:
    return VersionedRecord(7, JobRecord(NOW, Submitted(), record))


JUDGED: list[tuple[Job | None, int, type[ClaimDecision]]] = [
    # the record, the pointer's round, the step
    (None, 1, Nak),
    (make_job(Status.QUEUED), 1, Start),
    (make_job(Status.QUEUED), 2, Nak),
    (make_job(Status.QUEUED, round=2), 1, Ack),
    (make_job(Status.SCHEDULED), 1, Nak),
    (make_job(Status.RUNNING), 1, AdoptOwn),
    (make_job(Status.CANCELLING), 1, AdoptOwn),
    (make_job(Status.RUNNING, claim=make_claim(1, host="gpu-2")), 1, HeldElsewhere),
    (make_job(Status.CANCELLING, claim=make_claim(1, host="gpu-2")), 1, HeldElsewhere),
    (make_job(Status.RUNNING, claim=None), 1, HeldElsewhere),
    (make_job(Status.RUNNING, round=2), 1, Ack),
    (make_job(Status.SUCCEEDED), 1, Ack),
    (make_job(Status.FAILED), 1, Ack),
    (make_job(Status.CANCELLED), 1, Ack),
    (make_job(Status.EXPIRED), 1, Ack),
    (make_job(Status.FAILED), 2, Nak),
]


@pytest.mark.parametrize(("record", "round_", "step"), JUDGED)
def test_a_pointer_is_judged_by_its_record(record: Job | None, round_: int, step: type[ClaimDecision]) -> None:
    pointer = Pointer("echo", Priority.NORMAL, "ada", "j1", round_)
    assert type(decide(pointer, entry(record) if record else None, HOST, NOW)) is step


@pytest.mark.parametrize("record", [None, make_job(Status.SCHEDULED), make_job(Status.QUEUED, round=0)])
def test_a_pointer_that_is_ahead_of_its_record_comes_again_soon(record: Job | None) -> None:
    pointer = Pointer("echo", Priority.NORMAL, "ada", "j1", 1)
    assert decide(pointer, entry(record) if record else None, HOST, NOW) == Nak(2.0)


@pytest.mark.parametrize("field", ["not_before", "backoff_until"])
def test_what_is_not_due_comes_again_when_it_is(field: str) -> None:
    waiting = make_job(Status.QUEUED, **{field: NOW + timedelta(seconds=90)})
    assert decide(waiting.pointer, entry(waiting), HOST, NOW) == Nak(90.0)
    assert isinstance(decide(waiting.pointer, entry(waiting), HOST, NOW + timedelta(seconds=90)), Start)


def test_a_permit_is_given_back_once() -> None:
    slots = Slots(1)
    permit = slots.take()
    assert permit is not None
    assert slots.take() is None
    permit.release()
    assert slots.free == 1
    with pytest.raises(RuntimeError):
        permit.release()


def test_a_poisoned_slot_is_nobodys_until_it_heals() -> None:
    slots, key = Slots(1), JobKey("ada", "j1")
    permit = slots.take()
    assert permit is not None
    cleared: list[JobKey] = []
    permit.poison(key, lambda: cleared.append(key))
    assert slots.take() is None
    assert slots.poisoned == {key}
    assert cleared == []
    slots.clear_poison(key)
    assert slots.take() is not None
    assert cleared == [key]


def test_an_adopted_job_takes_the_slot_that_it_poisoned() -> None:
    slots, key = Slots(1), JobKey("ada", "j1")
    permit = slots.take()
    assert permit is not None
    cleared: list[JobKey] = []
    permit.poison(key, lambda: cleared.append(key))
    slots.take_for_recovered(key).release()
    assert slots.free == 1
    assert cleared == [key]


async def test_an_announced_release_is_told_once_and_only_while_the_slot_is_taken() -> None:
    slots = Slots(1)
    permit = slots.take()
    assert permit is not None
    permit.announce_release("gpu")
    assert await slots.wait_until_announced() == {"gpu"}
    permit.announce_release("gpu")
    permit.release()
    assert await slots.wait_until_announced() == frozenset()
    other = slots.take()
    assert other is not None
    other.announce_release("cpu")  # nothing of the first permit is left
    assert await slots.wait_until_announced() == {"cpu"}


async def test_whoever_waits_for_a_slot_is_notified() -> None:
    slots = Slots(1)
    over = [slots.take_for_recovered(), slots.take_for_recovered()]
    assert slots.free == -1
    for permit in over:
        permit.release()
    await slots.wait_until_free()
    assert slots.free == 1


SCHEMA = {
    "properties": {
        "video": {"type": "string", "format": "asset"},
        "clips": {"type": "array", "items": {"type": "string", "format": "asset"}},
        "note": {"type": "string"},
    }
}


def test_asset_fields_become_file_names() -> None:
    given = {"video": "sha256:a", "clips": ["sha256:b", "sha256:a"], "note": "sha256:a", "n": 1}
    names = assign_file_names(asset_fields(SCHEMA, given), {"sha256:a": ".mp4"})
    assert substitute_file_names(given, names) == {
        "video": "video.mp4",
        "clips": ["clips", "clips-2.mp4"],
        "note": "sha256:a",
        "n": 1,
    }


def test_a_field_that_is_called_as_another_one_is_numbered_has_a_file_of_its_own() -> None:
    schema = {"properties": {"clip": {"items": {"format": "asset"}}, "clip-2": {"format": "asset"}}}
    fields = asset_fields(schema, {"clip": ["sha256:a", "sha256:b"], "clip-2": "sha256:c"})
    assert list(assign_file_names(fields, {}).values()) == ["clip", "clip-2", "clip-2-2"]


LIMITS = [
    (Policy(), {}, JobTimeouts(100.0, 180.0)),
    (Policy(), {"length": 30}, JobTimeouts(160.0, 180.0)),
    (Policy(), {"length": "long"}, JobTimeouts(100.0, 180.0)),
    (Policy(), {"length": -30}, JobTimeouts(100.0, 180.0)),
    (Policy(), {"length": 10**400}, JobTimeouts(100.0 + 2 * INPUT_LENGTH_LIMIT_S, 180.0)),
    (Policy(execution_timeout_s=5.0, stall_timeout_s=7.0), {"length": 30}, JobTimeouts(5.0, 7.0)),
]


@pytest.mark.parametrize(("policy", "given", "expected"), LIMITS)
def test_timeouts(policy: Policy, given: dict[str, object], expected: JobTimeouts) -> None:
    endpoint = Endpoint(
        name="e", image="e", input_seconds="length", timeouts=Timeouts(base_s=100.0, per_input_s=2.0, stall_s=1.0)
    )
    assert job_timeouts(make_job(input=given, policy=policy), endpoint) == expected


def define(folder: Path, name: str, pool: str = "") -> None:
    folder.mkdir(parents=True)
    shared = f'pool = "{pool}"\n' if pool else ""
    (folder / "endpoint.toml").write_text(f'name = "{name}"\nimage = "{name}"\n{shared}')


def test_endpoints_are_found_in_a_folder_and_one_level_below(tmp_path: Path) -> None:
    define(tmp_path / "many" / "a", "a", "shared")
    define(tmp_path / "many" / "b", "b", "shared")
    define(tmp_path / "one", "c")
    kinds = load_endpoints([tmp_path / "many", tmp_path / "one"])
    assert {name: kind.folder.name for name, kind in kinds.items()} == {"a": "a", "b": "b", "c": "one"}
    assert {pool: [one.name for one in ends] for pool, ends in group_by_pool(kinds).items()} == {
        "shared": ["a", "b"],
        "c": ["c"],
    }


def test_two_folders_of_one_name_are_a_mistake(tmp_path: Path) -> None:
    define(tmp_path / "a", "same")
    define(tmp_path / "b", "same")
    with pytest.raises(EndpointInvalid, match="rename one"):
        load_endpoints([tmp_path])


def test_an_endpoint_file_of_another_editor_is_read_or_refused_with_its_name(tmp_path: Path) -> None:
    define(tmp_path / "a", "same")
    file = tmp_path / "a" / "endpoint.toml"
    text = file.read_text()
    file.write_bytes(text.encode("utf-8-sig"))
    assert list(load_endpoints([tmp_path])) == ["same"]
    file.write_bytes(text.encode("utf-16"))
    with pytest.raises(EndpointInvalid, match=r"a/endpoint\.toml: it is not text in UTF-8 .*: save it as UTF-8$"):
        load_endpoints([tmp_path])


def test_more_endpoints_than_a_host_may_offer_are_refused(tmp_path: Path) -> None:
    for number in range(HOST_ENDPOINTS_LIMIT + 1):
        define(tmp_path / str(number), f"e{number}")
    with pytest.raises(EndpointInvalid, match=r"defines 201 endpoints, at most 200: set `endpoints` to fewer folders"):
        load_endpoints([tmp_path])


def test_endpoints_that_are_too_large_together_are_refused(tmp_path: Path) -> None:
    for number in range(20):
        define(tmp_path / str(number), f"e{number}")
        with (tmp_path / str(number) / "endpoint.toml").open("a") as file:
            file.write(f'\ndescription = "{"x" * 60_000}"\n')
    with pytest.raises(EndpointInvalid, match=r"have \d+ bytes of JSON, at most 1048576: set `endpoints`"):
        load_endpoints([tmp_path])


def test_a_broken_endpoint_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "endpoint.toml").write_text("name = 1")
    with pytest.raises(EndpointInvalid, match=r"endpoint\.toml"):
        load_endpoints([tmp_path])
