"""Endpoints of several hosts, as `endpoints`, `hosts` and `doctor` print them: what differs, and what is filled."""

import json
import sys
from functools import partial
from pathlib import Path

import anyio
import httpx2
import msgspec
import pytest
import structlog.testing

from edge.http.routes.endpoints import EndpointListView, EndpointView
from lamplighter.cli import supervisor
from lamplighter.cli.context import EdgeAddress
from lamplighter.cli.doctor import DoctorTarget, check_endpoints
from runner.endpoints import ENDPOINT_FILE
from schemas.host import ENDPOINTS_TASK, VolumeStatus
from schemas.job import JobProgram
from tests.lamplighter.test_pauses_shown import lamplighter
from tests.support.served_edge import ServedEdge
from tests.support.wait import wait_for

A, B = (JobProgram("echo", f"sha256:{digit * 64}", f"sha256:{'e' * 64}") for digit in "ab")
SAME_FILES = {"echo": f"sha256:{'f' * 64}"}
WEIGHTS = VolumeStatus(
    volume="a" * 64,
    names=("weights",),
    endpoints=("echo",),
    state="filling",
    done_bytes=10**9,
    total_bytes=4 * 10**9,
    percent=25,
)


async def test_fills_labels_and_differences_are_in_the_tables(face: ServedEdge) -> None:
    world = face.world
    await world.announce_capabilities(programs={"echo": A}, labels={"room": "b", "disk": "nvme"})
    await world.send_heartbeat(volumes=(WEIGHTS,))
    await world.announce_capabilities(host="gpu-2", programs={"echo": B})
    full = msgspec.structs.replace(WEIGHTS, state="missing", failure="disk_full", why="no room on /srv")
    await world.send_heartbeat("gpu-2", volumes=(full,))
    listed = await lamplighter(face, "endpoints")
    assert "gpu-1 (weights: 25 %, 1.0 GB / 4.0 GB), gpu-2 (weights: disk full) (they differ)" in listed
    assert "/srv" not in listed
    hosts = await lamplighter(face, "hosts")
    assert [line.split()[-1] for line in hosts.splitlines()] == ["LABELS", "room=b", "-"]
    assert "disk=nvme, room=b" in hosts
    await world.announce_capabilities(programs={"echo": A}, sources=SAME_FILES)  # both were built where they run
    await world.announce_capabilities(host="gpu-2", programs={"echo": B}, sources=SAME_FILES)
    assert "(they differ)" not in await lamplighter(face, "endpoints")
    world.broker.corrupt("$KV.HOSTS.gpu-2", b'{"host": ["gpu-2"], "version": "0.9.0"}')
    await world.hosts.refresh()
    told = [line for line in (await lamplighter(face, "hosts")).splitlines() if "cannot" in line]
    assert len(told) == 1
    assert told[0].startswith("host gpu-2: cannot send heartbeats that this edge can read (")
    assert told[0].endswith("): upgrade the edge to the release of that runner (0.9.0)")


async def test_a_changed_file_that_is_not_valid_is_told(face: ServedEdge) -> None:
    problem = "/srv/echo/endpoint.toml: wram is an unknown field (did you mean warm?): allowed are name, warm"
    await face.world.send_heartbeat(blocked_work=(f"{ENDPOINTS_TASK}: {problem}", "fetch input: the edge is away"))
    argv = [sys.executable, "-m", "lamplighter", "endpoints", "--url", face.url, "--key", face.texts["admin"]]
    done = await anyio.run_process(argv)
    assert done.stderr.decode() == (
        f"host gpu-1 keeps its endpoints as they were, because a file is not valid: {problem}\n"
    )
    told = await lamplighter(face, "doctor", "--json")
    found = [one for one in json.loads(told) if one["name"] == "runner of gpu-1"]
    assert found[0]["what"] == f"cannot {ENDPOINTS_TASK}: {problem}"
    assert found[0]["fix"].startswith("correct that file")


async def test_up_tells_once_that_a_changed_file_is_not_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "ENDPOINTS_CHECK_INTERVAL_S", 0.01)
    file = tmp_path / "echo" / ENDPOINT_FILE
    file.parent.mkdir()
    file.write_text('name = "echo"\nimage = "echo"\nwram = true\n')  # the runner has refused this one already

    async def is_told(problem: str) -> bool:
        return bool(lines) and lines[-1]["error"].startswith(problem)

    with structlog.testing.capture_logs() as lines:
        async with anyio.create_task_group() as tasks:
            await tasks.start(supervisor.report_invalid_endpoints, [tmp_path])
            for key in ("nonsense", "gibberish"):
                file.write_text(f'name = "echo"\nimage = "echo"\n{key} = true\n')
                await wait_for(partial(is_told, f"{file}: {key} is an unknown field"))
            tasks.cancel_scope.cancel()
    assert [line["event"] for line in lines] == ["endpoints_not_valid"] * 2


@pytest.mark.parametrize(
    ("sources", "what", "fix"),
    [
        (
            {},
            (
                "its hosts differ (gpu-1: image aaaaaaaaaaaa endpoint.toml eeeeeeeeeeee,"
                " gpu-2: image bbbbbbbbbbbb endpoint.toml eeeeeeeeeeee)"
            ),
            "give these hosts the same endpoint.toml and the same image, best by its digest",
        ),
        (
            {"gpu-1": f"sha256:{'1' * 64}", "gpu-2": f"sha256:{'2' * 64}"},
            (
                "its hosts differ (gpu-1: folder 111111111111 endpoint.toml eeeeeeeeeeee,"
                " gpu-2: folder 222222222222 endpoint.toml eeeeeeeeeeee)"
            ),
            "give these hosts the same folder, and build its image again if it has one",
        ),
    ],
)
def test_doctor_names_what_differs_and_what_to_do(sources: dict[str, str], what: str, fix: str) -> None:
    view = EndpointView(
        name="echo",
        pool="echo",
        description="",
        input={},
        image="echo",
        warm=False,
        hosts=("gpu-1", "gpu-2"),
        programs={"gpu-1": A, "gpu-2": B},
        differs=True,
        sources=sources,
    )
    content = msgspec.json.encode(EndpointListView([view]))
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=content))
    with httpx2.Client(base_url="http://edge", transport=transport) as http:
        (found,) = check_endpoints(DoctorTarget(EdgeAddress("http://edge", "key"), Path(), http))
    assert (found.name, found.what, found.fix) == ("endpoint echo", what, fix)
