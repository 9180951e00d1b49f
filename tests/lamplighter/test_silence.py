"""An edge that is away, restarts, hides behind a proxy, or is none at all: when the clients wait, and how long."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import msgspec
import pytest

from lamplighter import AsyncClient, Client, JobView, Unreachable
from lamplighter import follow as followed
from lamplighter.follow import RECONNECT_TIMEOUT_S, ReconnectBudget
from schemas.backoff import Backoff

GONE = httpx2.ConnectError("gone")
GATEWAY = httpx2.Response(502, text="<html>Bad gateway</html>")
PAGE = httpx2.Response(200, text="<html>Welcome</html>")
MOVED = httpx2.Response(301, headers={"Location": "https://x.example/"})
NO_EDGE = [(GONE, "is the edge running"), (PAGE, "not answered by an edge"), (MOVED, "was redirected")]

Answer = httpx2.Response | httpx2.ConnectError


def job(status: str) -> httpx2.Response:
    urls = dict.fromkeys(("self", "events", "cancel", "retry", "logs"), "/")
    told: dict[str, Any] = {"id": "j", "owner": "ann", "endpoint": "echo", "status": status, "revision": 1, "input": {}}
    told |= {"round": 1, "attempt": 1, "max_attempts": 3, "priority": "normal", "tags": {}, "trace_id": ""}
    return httpx2.Response(200, json=told | {"created_at": "2026-11-22T00:00:00Z", "usage": {}, "urls": urls})


def states(*told: str) -> httpx2.Response:
    events = (
        f"id: 1-{n}\nevent: state\ndata: {msgspec.json.encode({'status': status}).decode()}\n\n"
        for n, status in enumerate(told, 1)
    )
    return httpx2.Response(200, text="".join(events))


def scripted(*answers: Answer) -> httpx2.MockTransport:
    script: Iterator[Answer] = iter(answers)

    def answer(_: httpx2.Request) -> httpx2.Response:
        given = next(script)
        if isinstance(given, Exception):
            raise given
        return httpx2.Response(given.status_code, headers=given.headers, content=given.content)

    return httpx2.MockTransport(answer)


Wait = Callable[[httpx2.MockTransport], JobView]
Follow = Callable[[httpx2.MockTransport], list[str]]


def waits(transport: httpx2.MockTransport) -> JobView:
    return Client("http://edge", transport=transport).wait("j")


def awaits(transport: httpx2.MockTransport) -> JobView:
    return anyio.run(AsyncClient("http://edge", transport=transport).wait, "j")


def follows(transport: httpx2.MockTransport) -> list[str]:
    return [event.data["status"] for event in Client("http://edge", transport=transport).follow("j")]


def follows_awaiting(transport: httpx2.MockTransport) -> list[str]:
    async def follow() -> list[str]:
        client = AsyncClient("http://edge", transport=transport)
        return [event.data["status"] async for event in client.follow("j")]

    return anyio.run(follow)


WAITS = pytest.mark.parametrize("wait", [waits, awaits])
FOLLOWS = pytest.mark.parametrize("follow", [follows, follows_awaiting])


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed, "RECONNECT_BACKOFF", Backoff(0, 0))


@WAITS
def test_a_restart_is_waited_out(wait: Wait):
    told = wait(scripted(job("queued"), GONE, GATEWAY, job("running"), GONE, job("succeeded")))
    assert told.status == "succeeded"


@FOLLOWS
def test_following_goes_on_over_a_restart(follow: Follow):
    told = follow(scripted(states("queued"), GONE, GATEWAY, states("running", "succeeded")))
    assert told == ["queued", "running", "succeeded"]


def test_streams_that_end_at_once_are_not_asked_for_in_a_hurry(monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr("lamplighter.client.time.sleep", pauses.append)
    assert follows(scripted(states(), job("running"), states(), job("running"), states("succeeded"))) == ["succeeded"]
    assert len(pauses) == 2


@WAITS
@pytest.mark.parametrize(("answer", "why"), NO_EDGE)
def test_what_was_never_an_edge_is_not_waited_for(wait: Wait, answer: Answer, why: str):
    with pytest.raises(Unreachable, match=why):
        wait(scripted(answer))


@FOLLOWS
def test_following_an_edge_that_was_never_there_ends(follow: Follow):
    with pytest.raises(Unreachable, match="is the edge running"):
        follow(scripted(GONE))


@WAITS
def test_one_that_stays_away_is_given_up(wait: Wait, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(followed, "RECONNECT_TIMEOUT_S", 0.0)
    with pytest.raises(Unreachable):
        wait(scripted(job("queued"), GONE))


def test_patience_is_counted_from_the_last_answer():
    failed_at = iter((0.0, 1000.0, 1000.0 + RECONNECT_TIMEOUT_S - 1, 5000.0, 5000.0 + RECONNECT_TIMEOUT_S))
    patience, silent = ReconnectBudget(lambda: next(failed_at)), Unreachable("silent")
    with pytest.raises(Unreachable):
        patience.spend(silent)
    patience.reset()
    patience.spend(silent)
    patience.spend(silent)
    patience.reset()
    patience.spend(silent)
    with pytest.raises(Unreachable):
        patience.spend(silent)


def test_a_home_that_cannot_be_written_spares_no_work_and_fails_nothing(tmp_path: Path):
    (tmp_path / "home").write_text("a file where a folder should be")
    file = tmp_path / "film.mp4"
    file.write_bytes(b"film")
    present = httpx2.Response(200, json={"present": ["x"], "missing": []})
    client = Client("http://edge", cache=tmp_path / "home" / "digests.json", transport=scripted(present))
    assert client.upload(file).bytes == 4


def test_each_failure_makes_the_next_delay_longer_and_an_answer_ends_that(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(followed, "RECONNECT_BACKOFF", Backoff(1.0, 4.0))
    budget, silent = ReconnectBudget(lambda: 0.0, lambda: 0.5), Unreachable("silent")
    budget.reset()
    delays_s = [budget.delay_s]
    for _ in range(4):
        budget.spend(silent)
        delays_s.append(budget.delay_s)
    budget.reset()
    assert [*delays_s, budget.delay_s] == [1.5, 1.5, 3.0, 6.0, 6.0, 1.5]
