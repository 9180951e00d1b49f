"""`lamplighter top` against a served edge: in a terminal, for a program, and what its screen shows."""

import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from subprocess import CompletedProcess
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest
from rich.console import Console

from lamplighter.cli.top import LogPage, Selection, TopScreen, draw_screen, format_duration, order_jobs, split_keys
from schemas import events as e
from schemas.job import Claim, JobKey
from schemas.job_view import JobView
from tests.support.served_edge import ServedEdge
from tests.support.terminal import Terminal, open_terminal

NOW = datetime(2026, 11, 30, 8, 0, 0, tzinfo=UTC)


def argv_of(face: ServedEdge, *words: str) -> Sequence[str]:
    return [sys.executable, "-m", "lamplighter", "top", *words, "--url", face.url, "--key", face.texts["ann"]]


async def top(face: ServedEdge, *words: str) -> CompletedProcess[bytes]:
    return await anyio.run_process(argv_of(face, *words), check=False)


async def submit(face: ServedEdge, *names: str) -> None:
    for name in names:
        reply = await face.ann.put(f"/v1/jobs/{name}", json={"endpoint": "echo", "input": {"text": "hello"}})
        assert reply.is_success


async def test_hosts_and_living_jobs_are_reported_to_people_and_to_programs(face: ServedEdge) -> None:
    await submit(face, "first", "second", "runs", "gone")
    await face.ann.post("/v1/jobs/gone/cancel")
    await face.world.write_event(JobKey("ann", "runs"), e.Started(Claim("gpu-1", "i1", 1)))
    for words in ((), ("--once",)):
        lines = (await top(face, *words)).stdout.decode().splitlines()
        assert [line.split()[0] for line in lines if " echo " in line] == ["runs", "first", "second"]
    shown = json.loads((await top(face, "--json")).stdout)
    assert [(job["id"], job["status"]) for job in shown["jobs"]] == [
        ("runs", "running"),
        ("first", "queued"),
        ("second", "queued"),
    ]
    assert (isinstance(shown["hosts"], list), shown["has_more"]) == (True, False)


async def test_without_a_server_it_ends_with_3() -> None:
    argv = [sys.executable, "-m", "lamplighter", "top", "--url", "http://127.0.0.1:1", "--key", "x"]
    assert (await anyio.run_process(argv, check=False)).returncode == 3


def watch(terminal: Terminal) -> None:
    """What a person does with six jobs in a terminal that has room for few."""
    seen = terminal.wait_until(lambda lines: "runs" in lines[4])
    assert [line.split()[0] for line in seen[4:7]] == ["runs", "job-0", "job-1"]
    assert seen[7].startswith("+3 waiting")
    assert "q: quit" in seen[-1]
    terminal.press("j")
    terminal.press("\x1b[B")  # down: job-1
    terminal.press("c")
    assert "cancel job-1?" in terminal.wait_until(lambda lines: "y: yes" in lines[-1])[-1]
    terminal.press("y")
    terminal.wait_until(
        lambda lines: "job job-1 cancelled" in lines[-1] and not any("job-1 " in one for one in lines[:8])
    )
    terminal.press("G")  # no key of ours
    terminal.press("l")
    terminal.wait_until(lambda lines: lines[0].startswith("log of runs: line"))
    terminal.press("q")
    terminal.wait_until(lambda lines: "runs" in lines[4])
    terminal.resize(100, 20)
    wide = terminal.wait_until(lambda lines: any(line.startswith("job-4") for line in lines))
    assert not any("waiting" in line for line in wide if line.startswith("+"))
    assert max(map(len, wide)) <= 100
    terminal.press("q")
    assert terminal.wait_until_ended() == 0


async def test_in_a_terminal_it_fits_the_screen_and_obeys_keys(face: ServedEdge) -> None:
    await submit(face, "runs", *(f"job-{number}" for number in range(5)))
    await face.world.write_event(JobKey("ann", "runs"), e.Started(Claim("gpu-1", "i1", 1)))
    with open_terminal(argv_of(face, "--every", "0.2"), 90, 9, LAMPLIGHTER_LANG="en") as terminal:
        await anyio.to_thread.run_sync(partial(watch, terminal))


async def test_in_chinese_columns_stay_in_line_and_ctrl_c_ends_it(face: ServedEdge) -> None:
    await submit(face, "a-job")

    def read(terminal: Terminal) -> None:
        def is_chinese(lines: list[str]) -> bool:
            text = "".join(lines).replace(" ", "")  # pyte leaves a cell after each wide character empty
            return "预计剩余" in text and "q：退出" in text

        terminal.wait_until(is_chinese)
        terminal.press("\x03")
        assert terminal.wait_until_ended() == 0

    with open_terminal(argv_of(face), 120, 12, LAMPLIGHTER_LANG="zh") as terminal:
        await anyio.to_thread.run_sync(partial(read, terminal))


def view(name: str, status: str = "queued", **fields: Any) -> JobView:
    urls = dict.fromkeys(("self", "events", "cancel", "retry", "logs"), "")
    base = {
        "id": name,
        "owner": "ann",
        "endpoint": "echo",
        "status": status,
        "revision": 1,
        "input": {},
        "round": 1,
        "attempt": 1,
        "max_attempts": 3,
        "priority": "normal",
        "tags": {},
        "trace_id": "t",
        "usage": {},
        "urls": urls,
        "created_at": NOW.isoformat(),
    }
    return msgspec.convert(base | fields, JobView)


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).isoformat()


GPU = {"name": "RTX 4090", "utilization": 87, "temperature_c": 61, "power_w": 320.4, "memory_total_mb": 24576}


def host(name: str) -> dict[str, Any]:
    gpus = [
        {**GPU, "memory_free_mb": 4096, "fitness": "fit", "share_free": 0.75},
        {"name": "old", "uuid": "GPU-7", "fitness": "unfit"},
    ]
    return {"id": name, "state": "online", "jobs": ["runs"], "gpus": gpus}


def drawn(seen: TopScreen, size: tuple[int, int] = (120, 20), **chosen: Any) -> list[str]:
    console = Console(width=size[0], height=size[1], file=open(os.devnull, "w"), record=True)  # noqa: SIM115, PTH123
    console.print(draw_screen(seen, Selection(**chosen), size, NOW))
    console.file.close()
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_a_screen_has_load_position_times_and_progress() -> None:
    progress = {"fraction": 0.42, "stage": "render"}
    jobs = [
        view("late", queue_position=7, queued_at=ago(65), eta={"finish_at": ago(-3725)}),
        view("next", queue_position=0, queued_at=ago(5)),
        view("early", "scheduled", created_at=ago(200_000)),
        view(
            "runs",
            "running",
            started_at=ago(31),
            host="gpu-1",
            gpu="GPU-7",
            progress=progress,
        ),
    ]
    lines = drawn(TopScreen([host("gpu-1")], order_jobs(jobs)))
    assert lines[1].split("  ")[0] == "gpu-1"
    assert "RTX 4090 87% 61°C 320W 20.0/24.0GB 75% of it free; old (unfit)" in lines[1]
    rows = [line.split() for line in lines[4:8]]
    assert rows == [
        ["runs", "echo", "running", "gpu-1:1", "0:31", "42%", "render"],
        ["next", "echo", "queued", "0", "0:05"],
        ["late", "echo", "queued", "7", "1:05", "1:02:05"],
        ["early", "echo", "scheduled", "2d", "7h"],
    ]


@pytest.mark.parametrize("size", [(40, 8), (80, 24), (200, 50)])
def test_a_screen_never_exceeds_its_terminal(size: tuple[int, int]) -> None:
    hosts = [host(f"gpu-{number}") for number in range(10)]
    jobs = [view(f"job-{number:02}", queue_position=number, message="m" * 300) for number in range(60)]
    lines = drawn(TopScreen(hosts, jobs), size)
    assert len(lines) <= size[1]
    assert max(map(len, lines)) <= size[0]
    shown = sum(line.startswith("job-") for line in lines)
    assert shown == 60 or f"+{60 - shown} waiting" in lines[-2]


def test_the_chosen_job_is_on_the_screen_and_a_cut_list_is_said_to_be_cut() -> None:
    jobs = [view(f"job-{number:02}", queue_position=number) for number in range(60)]
    lines = drawn(TopScreen([], jobs), (80, 12), job_id="job-59")
    assert any(line.startswith("job-59") for line in lines)
    assert "or more" in drawn(TopScreen([], jobs, has_more=True), (80, 12))[-2]


def test_a_log_shows_a_page_and_where_it_is() -> None:
    log = LogPage("runs", [f"line {number}" for number in range(100)], top=50)
    lines = drawn(TopScreen([], []), (40, 10), log=log)
    assert (lines[0], lines[1], lines[-2]) == ("log of runs: line 58 of 100", "line 50", "line 57")


@pytest.mark.parametrize(("seconds", "text"), [(-5, "0:00"), (65.9, "1:05"), (3725, "1:02:05"), (3 * 86400, "3d 0h")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_keys_are_told_apart() -> None:
    assert split_keys(b"jc\x1b[A\x1bOB\x1b[5~\r\x1b\x00\x80q") == [
        "j",
        "c",
        "up",
        "down",
        "page_up",
        "enter",
        "escape",
        "q",
    ]
