"""A data folder that the previous release wrote, and an edge and a runner that are one release apart."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lamplighter import AsyncClient, Client
from schemas.job import FINAL_STATUSES, Status
from schemas.job_view import JobView
from tests.backup.test_drill import bytes_of, client_of, reached
from tests.e2e.test_up import up
from tests.support.installation import ROOT, Installation, wait_until_ready

PATIENCE_S = 90.0


def left_by_the_previous(client: Client, file: Path) -> dict[Status, JobView]:
    """One job of each state that lasts; what waits does so behind the one that runs."""
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    made = {
        Status.SUCCEEDED: client.submit("echo", wait=True, text="done", file=file),
        Status.SCHEDULED: client.submit("echo", text="later", options={"options": {"not_before": tomorrow}}),
        Status.FAILED: reached(client, client.submit("echo", behave="exit", exit=65), Status.FAILED),
        Status.RUNNING: client.submit("echo", behave="hang"),
    }
    reached(client, made[Status.RUNNING], Status.RUNNING)
    made[Status.QUEUED] = client.submit("echo", text="next", file=file)
    made[Status.CANCELLED] = client.cancel(client.submit("echo", text="never").id)
    return made


@pytest.mark.long(13)
@pytest.mark.timeout(300)
def test_what_the_previous_release_left_is_there_and_goes_on(previous: Path, tmp_path: Path):
    data, file = tmp_path / "data", tmp_path / "given.txt"
    file.write_bytes(os.urandom(100_000))
    with up(data, "--grace", "0", tree=previous) as (_, said), client_of(said, tmp_path) as client:
        made = left_by_the_previous(client, file)
    with up(data) as (_, now), client_of(now, tmp_path) as client:
        assert now["key"] == said["key"]
        for status in (Status.SUCCEEDED, Status.SCHEDULED, Status.FAILED, Status.CANCELLED):
            assert client.job(made[status].id).status is status
        done = made[Status.SUCCEEDED].id
        assert set(bytes_of(client, done, tmp_path).values()) == {True}
        assert client.logs(done)
        assert [event.data["status"] for event in client.follow(done) if event.kind == "state"][-1] == "succeeded"
        assert {job.id for job in client.jobs()} >= {job.id for job in made.values()}
        again = reached(client, made[Status.RUNNING], Status.RUNNING)
        client.cancel(again.id)
        reached(client, again, Status.CANCELLED)
        reached(client, made[Status.QUEUED], Status.SUCCEEDED)
        assert set(bytes_of(client, made[Status.QUEUED].id, tmp_path).values()) == {True}
        assert client.retry(made[Status.FAILED].id).round == 2


@asynccontextmanager
async def apart(folder: Path, verb: str, previous: Path) -> AsyncIterator[AsyncClient]:
    """An installation whose `verb` is of the previous release."""
    installation = Installation(folder, "process", None, programs={verb: previous})
    keys = await installation.open()
    endpoints = {"edge": ROOT / "images" / "echo", "runner": ROOT / "images" / "echo"} | {
        verb: previous / "images" / "echo"
    }
    try:
        await installation.start_edge([endpoints["edge"]])
        async with AsyncClient(installation.url, keys["ann"], cache=folder / "ann.json") as client:
            await wait_until_ready(client, PATIENCE_S)
            await installation.start_runner(endpoints=[endpoints["runner"]])
            yield client
            print(installation.tail())  # noqa: T201 - shown by pytest when the test failed
    finally:
        await installation.close()


@pytest.mark.long(10)
@pytest.mark.timeout(300)
@pytest.mark.parametrize("verb", ["edge", "runner"])
async def test_an_edge_and_a_runner_one_release_apart_work_together(verb: str, previous: Path, tmp_path: Path):
    file = tmp_path / "given.txt"
    file.write_text("given")
    async with apart(tmp_path, verb, previous) as client:
        done = await client.wait((await client.submit("echo", text="hi", file=file)).id)
        assert (done.status, done.output.data) == (Status.SUCCEEDED, {"text": "hi"})
        made = done.output.files[0].name
        assert (await client.download(done, made, tmp_path / "got")).read_text() == "given"
        assert "step 10 of 10" in await client.logs(done.id)
        bad = await client.submit("echo", behave="exit", exit=65)
        events = [event async for event in client.follow(bad.id)]
        assert [event.data["status"] for event in events if event.kind == "state"][-1] == Status.FAILED
        stopped = await client.submit("echo", behave="hang")
        async for event in client.follow(stopped.id):
            if event.kind == "state" and event.data["status"] == Status.RUNNING:
                await client.cancel(stopped.id)
            if event.kind == "state" and event.data["status"] in FINAL_STATUSES:
                assert event.data["status"] == Status.CANCELLED
        again = await client.retry(bad.id)
        assert again.round == 2
