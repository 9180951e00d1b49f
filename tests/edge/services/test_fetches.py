"""Inputs given as URLs: downloaded after the 202 answer, into the owner's assets."""

import gzip
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from edge.outbound import PerOwnerLimiter
from schemas.job import Job, Status, WaitReason
from schemas.problems import ProblemError
from tests.edge.services.test_await_input import FILM, VOICE, became, digest
from tests.support.edge_services import EdgeServicesRig, FakeBusServicesRig, fake_bus_services
from tests.support.scripted_servers import (
    ServerScript,
    http_redirect,
    http_response,
    scripted_server,
    send_bytes,
    send_endless_body,
    send_slow_body,
    stay_silent,
)
from tests.support.wait import wait_for


def request(url: str, **more: Any) -> dict[str, Any]:
    return {"endpoint": "echo", "input": {"file": url, "text": url}, **more}


async def submitted(edge: EdgeServicesRig, url: str, **more: Any) -> Job:
    accepted = await edge.jobs.submit("ann", request(url, **more))
    return accepted.entry.record.job


def at(port: int, path: str = "/a%20film.mp4") -> str:
    return f"http://files.test:{port}{path}"


async def failed(edge: EdgeServicesRig, play: ServerScript, **more: Any) -> Job:
    """Submit a job whose input URL is answered by `play`, and return it when it has failed."""
    async with scripted_server(play) as server:
        return await became(edge, await submitted(edge, at(server.port), **more), Status.FAILED)


async def test_a_url_is_fetched_after_the_answer_and_becomes_the_owners_asset(edge: EdgeServicesRig) -> None:
    gate = anyio.Event()

    async def slow(stream: anyio.abc.ByteStream) -> None:
        await gate.wait()
        await http_response(FILM)(stream)

    async with scripted_server(slow) as server:
        url = at(server.port)
        job = await submitted(edge, url)
        assert (job.status, job.input["file"]) == (Status.SCHEDULED, url)
        view = await edge.job_views.build(await edge.jobs.read(job.key))
        assert view.reason == WaitReason.FETCHING_INPUT
        gate.set()
        queued = await became(edge, job, Status.QUEUED)
    assert queued.input == {"file": f"sha256:{digest(FILM)}", "text": url, "seconds": 0}
    reference, _ = await edge.assets.get("ann", digest(FILM))
    assert (reference.name, reference.media_type) == ("a film.mp4", "video/mp4")
    rows = await edge.jobs.read_history(job.key)
    assert [row.event["type"] for row in rows] == ["submitted", "supplied", "queued"]
    assert rows[1].event["url"] == url
    await edge.publish_window.wait_until_idle()
    assert await edge.list_pointers() == [job.id]


async def test_the_fetched_asset_is_in_use_as_one_named_by_its_digest(edge: EdgeServicesRig) -> None:
    async with scripted_server(http_response(FILM)) as server:
        await became(edge, await submitted(edge, at(server.port)), Status.QUEUED)
    with pytest.raises(ProblemError, match="asset_in_use"):
        await edge.assets.delete("ann", digest(FILM))


async def test_a_url_in_two_places_is_fetched_once_and_a_job_may_wait_for_both_kinds(edge: EdgeServicesRig) -> None:
    async with scripted_server(http_response(FILM)) as server:
        url = at(server.port)
        body = {"endpoint": "echo", "input": {"file": url, "second": url}}
        both = (await edge.jobs.submit("ann", body)).entry.record.job
        await became(edge, both, Status.QUEUED)
        assert len(server.requests) == 1
        mixed = {"endpoint": "echo", "input": {"file": url, "second": f"sha256:{digest(VOICE)}"}, "await_input": True}
        job = (await edge.jobs.submit("ann", mixed)).entry.record.job

        async def fetched() -> bool:
            return not (await edge.read(job)).pending_urls

        await wait_for(fetched)
        assert (await edge.read(job)).status is Status.SCHEDULED
        await edge.put("ann", VOICE)
        await became(edge, job, Status.QUEUED)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("ftp://example.com/a", "$.input.file"),
        ("http://127.0.0.1/a", "$.input.file"),
        ("http://169.254.169.254/latest", "$.input.file"),
        ("http://user:pw@example.com/", "$.input.file"),
        ("http://0x7f.1/", "$.input.file"),
        ("http://xn--/", "$.input.file"),
        ("http://xn--a.com/", "$.input.file"),
    ],
)
async def test_a_url_that_may_never_be_fetched_is_refused_at_once(
    fake: FakeBusServicesRig, url: str, path: str
) -> None:
    with pytest.raises(ProblemError) as refused:
        await fake.jobs.submit("ann", request(url))
    assert (refused.value.code, [fault.path for fault in refused.value.errors]) == ("url_refused", [path])
    assert await fake.bus.job_store.keys() == set()


async def test_a_name_that_stands_for_the_inside_fails_the_job(fake: FakeBusServicesRig) -> None:
    fake.names._answers["evil.test"] = [["10.0.0.1"]]
    job = await became(fake, await submitted(fake, "http://evil.test/a"), Status.FAILED)
    assert job.error is not None
    assert (job.error.code, job.error.blame) == ("input_fetch_failed", "client")
    assert "private address" in job.error.message


@pytest.mark.parametrize(
    ("play", "code", "said"),
    [
        (http_response(status="404 Not Found"), "input_fetch_failed", "404"),
        (http_response(gzip.compress(bytes(9_000_000)), Content_Encoding="gzip"), "input_fetch_failed", "gzip"),
        (http_redirect("http://127.0.0.1:1/"), "input_fetch_failed", "loopback"),
        (http_redirect("http://xn--a.com/"), "input_fetch_failed", "neither a name nor an address"),
        (http_response(bytes(3_000_000)), "input_too_large", "3000000 bytes"),
        (send_endless_body, "input_too_large", "1048576"),
        (http_response(status="503 Busy"), "input_fetch_failed", "503"),
        (send_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"), "input_fetch_failed", "closed"),
    ],
    ids=[
        "404",
        "gzip bomb",
        "redirect inwards",
        "redirect to no name",
        "too large and says so",
        "endless",
        "503 for ever",
        "cut short",
    ],
)
async def test_what_cannot_be_had_fails_the_job_and_leaves_nothing(
    fake: FakeBusServicesRig, play: ServerScript, code: str, said: str
) -> None:
    job = await failed(fake, play)
    assert job.error is not None
    assert (job.error.code, said in job.error.message) == (code, True), job.error
    assert (await fake.assets.list("ann")).assets == ()
    assert fake.store._assets == {}


@pytest.mark.parametrize("play", [send_slow_body, stay_silent], ids=["drip", "silent"])
async def test_a_server_that_takes_its_time_is_left_when_the_time_is_up(
    fake: FakeBusServicesRig, play: ServerScript
) -> None:
    job = await failed(fake, play, policy={"input_timeout_s": 1})
    assert job.error is not None
    assert (job.error.code, "longer than" in job.error.message) == ("input_fetch_failed", True)


async def test_what_we_cannot_take_fails_its_job_and_the_next_is_fetched(fake: FakeBusServicesRig, monkeypatch) -> None:
    put = fake.assets.put

    async def once_odd(*given: Any) -> Any:
        monkeypatch.setattr(fake.assets, "put", put)
        raise KeyError("a bug of ours")

    monkeypatch.setattr(fake.assets, "put", once_odd)
    async with scripted_server(http_response(FILM)) as server:
        job = await became(fake, await submitted(fake, at(server.port)), Status.FAILED)
        assert job.error is not None
        assert (job.error.code, "its log says why" in job.error.message) == ("input_fetch_failed", True)
        await became(fake, await submitted(fake, at(server.port)), Status.QUEUED)


async def test_a_server_that_is_busy_is_asked_again(fake: FakeBusServicesRig) -> None:
    calls = 0

    async def play(stream: anyio.abc.ByteStream) -> None:
        nonlocal calls
        calls += 1
        await (http_response(FILM) if calls == 3 else http_response(status="503 Busy"))(stream)

    async with scripted_server(play) as server:
        await became(fake, await submitted(fake, at(server.port)), Status.QUEUED)
    assert calls == 3


async def test_a_retry_fetches_again(fake: FakeBusServicesRig) -> None:
    plays: list[ServerScript] = [http_response(status="404 Not Found"), http_response(FILM)]

    async def play(stream: anyio.abc.ByteStream) -> None:
        await plays.pop(0)(stream)

    async with scripted_server(play) as server:
        job = await became(fake, await submitted(fake, at(server.port)), Status.FAILED)
        again = (await fake.jobs.retry(job.key)).record.job
        assert (again.status, again.round) == (Status.SCHEDULED, 2)
        await became(fake, job, Status.QUEUED)


async def _asked(server: Any) -> Callable[[], Awaitable[bool]]:
    async def asked() -> bool:
        return bool(server.requests)

    return asked


async def test_a_cancelled_job_ends_its_fetch(fake: FakeBusServicesRig) -> None:
    left = anyio.Event()

    async def play(stream: anyio.abc.ByteStream) -> None:
        try:
            await stay_silent(stream)
        finally:
            left.set()

    async with scripted_server(play) as server:
        job = await submitted(fake, at(server.port))
        await wait_for(await _asked(server))
        await fake.jobs.cancel(job.key)
        with anyio.fail_after(10):
            await left.wait()
    await fake.wait_until_indexed()
    assert (await fake.read(job)).status is Status.CANCELLED
    assert fake.fetches._active_fetches == {}
    assert await fake.bus.leases.rows() == {}


async def test_two_edges_fetch_once(fake: FakeBusServicesRig, tmp_path: Path) -> None:
    gate = anyio.Event()

    async def slow(stream: anyio.abc.ByteStream) -> None:
        await gate.wait()
        await http_response(FILM)(stream)

    async with (
        fake_bus_services(tmp_path / "second", fake.broker, fake.time) as second,
        scripted_server(slow) as server,
    ):
        job = await submitted(fake, at(server.port))
        await second.wait_until_indexed()
        await wait_for(await _asked(server))
        for edge in (fake, second):
            await edge.reconciler.sweep()
        await anyio.wait_all_tasks_blocked()
        gate.set()
        await became(fake, job, Status.QUEUED)
        assert len(server.requests) == 1


async def test_what_a_dead_edge_was_fetching_another_fetches(fake: FakeBusServicesRig, tmp_path: Path) -> None:
    """The lease of a dead edge expires by itself; until then no other edge downloads the file."""
    async with scripted_server(http_response(FILM)) as server:
        url = at(server.port)
        async with fake.input_waiter._url_fetcher._leases.acquire("ann.mine", url):
            accepted = await fake.jobs.submit("ann", request(url), job_id="mine")
            await fake.wait_until_indexed()
            await fake.reconciler.sweep()
            await anyio.wait_all_tasks_blocked()
            assert server.requests == []
        async with fake_bus_services(tmp_path / "second", fake.broker, fake.time):
            await became(fake, accepted.entry.record.job, Status.QUEUED)


async def test_a_lease_that_is_not_renewed_runs_out(fake: FakeBusServicesRig) -> None:
    leases = fake.fetches._leases
    async with leases.acquire("ann.one", "x") as first:
        async with leases.acquire("ann.one", "x") as second:
            assert (first, second) == (True, False)
        fake.time.advance(seconds=16)
        async with leases.acquire("ann.one", "x") as third:
            assert third


async def test_an_owner_with_many_slow_urls_leaves_room_for_another(fake: FakeBusServicesRig) -> None:
    async with scripted_server(stay_silent) as slow, scripted_server(http_response(FILM)) as quick:
        for number in range(12):
            await submitted(fake, at(slow.port, f"/{number}"))
        body = request(at(quick.port))
        bobs = (await fake.jobs.submit("bob", body)).entry.record.job
        await became(fake, bobs, Status.QUEUED)
        assert len(slow.requests) == 2


async def test_turns_are_bounded_in_all_and_for_each() -> None:
    turns, running, most = PerOwnerLimiter(total=3, per_owner=2), {"a": 0, "b": 0, "c": 0}, []

    async def work(owner: str) -> None:
        async with turns.slot(owner):
            running[owner] += 1
            most.append((sum(running.values()), running[owner]))
            await anyio.lowlevel.checkpoint()
            running[owner] -= 1

    async with anyio.create_task_group() as tasks:
        for owner in "aaaaabbbcc":
            tasks.start_soon(work, owner)
    assert (max(total for total, _ in most), max(each for _, each in most)) == (3, 2)
    assert turns._by_owner == {}
