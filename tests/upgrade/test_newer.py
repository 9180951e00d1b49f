"""What a newer release writes: an older reader, this one, passes over what it does not know and serves the rest."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from msgspec import Struct, inspect

from bus.interface import Bus, Table
from bus.nats.jetstream import JetStreamClient
from schemas.endpoint import Endpoint, EndpointInvalid, parse_endpoint
from schemas.events import FeedMessage, JobEvent
from schemas.host import HostCapabilities, HostHeartbeat
from schemas.job import Job, JobKey, Status
from schemas.job_view import JobUsage, PowerUsage
from schemas.power import PowerRecord, PowerState
from tests.support.installation import RunningInstallation, run_new_installation
from tests.support.wait import wait_for

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
ROWS = tuple(get_args(hint)[0] for hint in get_type_hints(Bus).values() if getattr(hint, "__origin__", None) is Table)
MESSAGES = (Job, *get_args(JobEvent), *get_args(FeedMessage), JobUsage, PowerUsage)
FUTURE = {"of_the_future": {"unheard": ["of"]}}


def structs(info: Any, seen: set[type]) -> Iterator[type[Struct]]:
    """Every Struct that a value of the type can hold."""
    if isinstance(info, inspect.StructType):
        if info.cls in seen:
            return
        seen.add(info.cls)
        yield info.cls
        parts = [field.type for field in info.fields]
    else:
        parts = [getattr(info, name) for name in ("item_type", "key_type", "value_type") if hasattr(info, name)]
        parts += [*getattr(info, "types", ()), *getattr(info, "item_types", ())]
    for part in parts:
        yield from structs(part, seen)


@pytest.mark.parametrize("stored", [*ROWS, *MESSAGES], ids=lambda kind: kind.__name__)
def test_nothing_that_is_stored_refuses_names_it_does_not_know(stored: type):
    strict = [kind.__name__ for kind in structs(inspect.type_info(stored), set()) if _strict(kind)]
    assert strict == []


def _strict(kind: type[Struct]) -> bool:
    return bool(kind.__struct_config__.forbid_unknown_fields)


def test_a_file_is_read_strictly_all_the_same():
    text = 'name = "a"\nimage = "b"\n'
    assert parse_endpoint(text).name == "a"
    for slip in ("imag = 1\n", "[resources]\nvram = 1\n", '[process]\ncommand = ["x"]\nargs = []\n'):
        with pytest.raises(EndpointInvalid, match="unknown field"):
            parse_endpoint(text + slip)


@pytest.fixture
async def lit(tmp_path: Path) -> AsyncIterator[RunningInstallation]:
    async with run_new_installation(tmp_path, "process", None) as lit:
        await lit.installation.start_runner()
        yield lit
        print(lit.installation.tail())  # noqa: T201 - shown by pytest when the test failed


def jetstream(bus: Bus) -> JetStreamClient:
    return bus.job_queue._jetstream  # type: ignore[attr-defined]


def newer(value: Struct, **more: Any) -> bytes:
    """As a newer release might write it."""
    return msgspec.json.encode(msgspec.to_builtins(value) | FUTURE | more)


def job(job_id: str) -> Job:
    return Job(
        id=job_id,
        owner="ann",
        endpoint="echo",
        pool="echo",
        status=Status.SUCCEEDED,
        request_digest="0" * 64,
        input={},
        created_at=NOW,
        finished_at=NOW,
    )


async def test_an_event_that_nobody_knows_here_is_shown_and_the_job_beside_it_counts(lit: RunningInstallation):
    js, key = jetstream(lit.bus), JobKey("ann", "of-tomorrow")
    told = {
        "at": NOW,
        "event": {"type": "teleported", "where": "there"},
        "job": msgspec.to_builtins(job(key.id)) | FUTURE,
    }
    await js.publish(f"feed.{key.owner}.{key.id}.progress", msgspec.json.encode({"type": "hologram", **FUTURE}))
    await js.publish(f"$KV.STATE.{key.owner}.{key.id}", msgspec.json.encode(told))
    assert (await lit.ann.job(key.id)).status is Status.SUCCEEDED

    async def listed() -> bool:
        return key.id in {one.id async for one in lit.ann.jobs()}

    await wait_for(listed)
    states = [event async for event in lit.ann.follow(key.id) if event.kind == "state"]
    assert [event.data["status"] for event in states] == ["succeeded"]
    history = await lit.ann._http.get(f"/v1/jobs/{key.id}/history")
    assert "teleported" in history.text
    done = await lit.ann.submit("echo", text="all else goes on", wait=True)
    assert done.status is Status.SUCCEEDED


async def test_rows_with_more_in_them_than_is_known_here_are_read(lit: RunningInstallation):
    js = jetstream(lit.bus)
    endpoint = msgspec.to_builtins(Endpoint(name="future", image="f")) | FUTURE
    endpoint["resources"] |= FUTURE
    presence = HostHeartbeat(host="newer", incarnation="i1", at=datetime.now(UTC), since=NOW)
    offer = HostCapabilities(host="newer", incarnation="i1", at=NOW)
    power = PowerRecord(state=PowerState.ONLINE, since=NOW)
    await js.publish("$KV.HOSTS.newer", newer(presence, busy={"running": 0, **FUTURE}))
    await js.publish("$KV.OFFERS.newer", newer(offer, endpoints=[endpoint]))
    await js.publish("$KV.POWER.newer", newer(power, spend={"day": "", "on_s": 0.0, **FUTURE}))
    assert (await lit.bus.power_records.rows())["newer"].value == power

    async def known() -> bool:
        offered = (await lit.ann._http.get("/v1/endpoints")).text
        there = (await lit.admin._http.get("/v1/hosts")).text
        return "future" in offered and "newer" in there

    await wait_for(known)
    assert (await lit.ann.submit("echo", text="still", wait=True)).status is Status.SUCCEEDED
