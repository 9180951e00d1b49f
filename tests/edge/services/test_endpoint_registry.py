"""The known endpoints and their input schemas."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from structlog.testing import capture_logs

from edge.core.validation import STEPS_LIMIT, ValidatedInput, check_within
from edge.hosts.endpoints import load_endpoints
from schemas.endpoint import Endpoint, EndpointInvalid
from schemas.host import HOST_ENDPOINTS_LIMIT, HostCapabilities
from schemas.job import NESTING_LIMIT, PendingUrl, Priority
from schemas.problems import FieldError, ProblemError
from tests.support.edge_services import ASSET_SCHEMA, ECHO_ENDPOINT, START, FakeBusServicesRig

DIGEST = "ab" * 32


def offer(host: str, hours: int, *endpoints: Endpoint, slots: int = 1) -> HostCapabilities:
    return HostCapabilities(
        host=host, incarnation="i", at=START + timedelta(hours=hours), endpoints=endpoints, slots=slots
    )


async def test_the_newest_offer_counts_and_any_offer_before_the_folder(fake: FakeBusServicesRig) -> None:
    old, new = structs.replace(ECHO_ENDPOINT, image="old"), structs.replace(ECHO_ENDPOINT, image="new")
    assert fake.endpoints.get("echo").image == "echo"
    await fake.bus.capabilities.put("b", offer("b", 1, old, slots=2))
    await fake.bus.capabilities.put("a", offer("a", 2, new))
    assert await fake.endpoints.refresh()
    assert not await fake.endpoints.refresh()
    assert fake.endpoints.get("echo").image == "new"
    assert fake.endpoints.offered_slots("echo") == 3
    assert fake.endpoints.hosts_offering("echo") == {"a", "b"}
    assert fake.endpoints.all() == (new,)


async def test_a_new_pool_gets_its_queue(fake: FakeBusServicesRig) -> None:
    shared = structs.replace(ECHO_ENDPOINT, name="other", pool="gpu")
    await fake.bus.capabilities.put("a", offer("a", 1, shared))
    await fake.endpoints.refresh()
    assert fake.endpoints.pools() == {"echo", "gpu"}
    job = await fake.jobs.submit("ann", {"endpoint": "other", "input": {}})
    await fake.publish_window.wait_until_idle()
    delivery = await fake.runner_bus.job_queue.fetch("gpu", Priority.NORMAL)
    assert delivery is not None
    assert delivery.pointer.id == job.entry.record.job.id


async def test_an_offer_with_a_broken_schema_is_left_out(fake: FakeBusServicesRig) -> None:
    broken = structs.replace(ECHO_ENDPOINT, name="broken", input={"type": "nonsense"})
    await fake.bus.capabilities.put("a", offer("a", 1, broken, structs.replace(ECHO_ENDPOINT, name="fine")))
    await fake.endpoints.refresh()
    assert [endpoint.name for endpoint in fake.endpoints.all()] == ["echo", "fine"]


async def test_of_an_offer_that_is_too_long_the_first_endpoints_are_used(fake: FakeBusServicesRig) -> None:
    many = [structs.replace(ECHO_ENDPOINT, name=f"e{number}") for number in range(HOST_ENDPOINTS_LIMIT + 1)]
    await fake.bus.capabilities.put("a", offer("a", 1, *many))
    with capture_logs() as logs:
        await fake.endpoints.refresh()
    assert len(fake.endpoints.offered_by("a")) == HOST_ENDPOINTS_LIMIT
    assert fake.endpoints.find(many[-1].name) is None
    assert [line for line in logs if line["event"] == "host_endpoints_limited"] == [
        {"event": "host_endpoints_limited", "log_level": "warning", "host": "a", "offered": 201, "limit": 200}
    ]


def test_a_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text('name = "b"\nimage = "b"\n')
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "endpoint.toml").write_text('name = "a"\nimage = "a"\n')
    assert [endpoint.name for endpoint in load_endpoints(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize("text", ["name = 1", 'name="a"\nimage="a"\n[input]\ntype="nonsense"', "]["])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(EndpointInvalid, match=r"bad\.toml"):
        load_endpoints(tmp_path)


def checked(schema: dict[str, Any], given: dict[str, Any]) -> ValidatedInput:
    return check_within(STEPS_LIMIT, Endpoint(name="x", image="x", input=schema), given)


def faults(schema: dict[str, Any], given: dict[str, Any]) -> list[FieldError]:
    with pytest.raises(ProblemError) as caught:
        checked(schema, given)
    assert caught.value.code == "input_invalid"
    return list(caught.value.errors)


def test_defaults_are_filled_at_every_level() -> None:
    inner = {"type": "object", "properties": {"n": {"default": 2}}}
    schema = {"properties": {"a": {"default": 1}, "in": inner, "list": {"type": "array", "items": inner}}}
    given = {"in": {}, "list": [{}, {"n": 5}]}
    assert checked(schema, given)[0] == {"a": 1, "in": {"n": 2}, "list": [{"n": 2}, {"n": 5}]}
    assert given == {"in": {}, "list": [{}, {"n": 5}]}


def test_what_nobody_could_walk_is_refused() -> None:
    deep: Any = "x"
    for _ in range(NESTING_LIMIT - 1):
        deep = [deep]
    assert checked({}, {"a": deep})[0] == {"a": deep}
    assert "nested deeper" in faults({}, {"a": [deep]})[0].message


def test_every_digest_is_found_once() -> None:
    schema = {"properties": {"a": ASSET_SCHEMA, "b": {"type": "array", "items": ASSET_SCHEMA}}}
    given = {"a": f"sha256:{DIGEST}", "b": [f"sha256:{DIGEST}", f"sha256:{'cd' * 32}"]}
    assert checked(schema, given)[1] == (DIGEST, "cd" * 32)


def test_urls_are_found_with_their_places() -> None:
    schema = {
        "properties": {"a": ASSET_SCHEMA, "b": {"type": "array", "items": ASSET_SCHEMA}, "text": {"type": "string"}}
    }
    given = {"a": "HTTPS://x.example/a", "b": ["http://y.example/b", f"sha256:{DIGEST}"], "text": "http://z.example/"}
    found = check_within(STEPS_LIMIT, Endpoint(name="x", image="x", input=schema), given)
    assert found.pending_urls == (PendingUrl("$.a", "HTTPS://x.example/a"), PendingUrl("$.b[0]", "http://y.example/b"))
    assert found.digests == (DIGEST,)


def test_all_faults_are_reported_with_their_paths() -> None:
    schema = {
        "properties": {
            "clips": {"type": "array", "items": {"properties": {"video": ASSET_SCHEMA}, "required": ["video"]}}
        },
        "required": ["clips", "name"],
    }
    told = faults(schema, {"clips": [{}, {"video": 5}, {"video": "a.mp4"}]})
    assert {fault.path for fault in told} == {
        "$.input.name",
        "$.input.clips[0].video",
        "$.input.clips[1].video",
        "$.input.clips[2].video",
    }
    assert "names no asset" in next(f.message for f in told if f.path == "$.input.clips[2].video")


def test_long_values_are_not_quoted_back_whole() -> None:
    assert len(faults({"properties": {"a": {"type": "number"}}}, {"a": "x" * 60_000})[0].message) <= 300


def test_a_schema_elsewhere_is_never_fetched() -> None:
    with pytest.raises(ProblemError, match="refers to a schema that it does not contain"):
        checked({"properties": {"a": {"$ref": "http://example.invalid/x.json"}}}, {"a": 1})
