"""A reader of a job's output is woken by the job's writes, with inotify and without."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runner.engines import output_streams
from runner.engines.output_streams import FolderWatch


@contextmanager
def opened_watch() -> Iterator[FolderWatch]:
    watch = FolderWatch()
    watch.open()
    try:
        yield watch
    finally:
        watch.close()


@pytest.fixture
def never_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_streams, "CHECK_INTERVAL_S", 3600.0)


@pytest.mark.usefixtures("never_polls")
async def test_a_write_wakes_every_reader_of_its_folder_and_no_other(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stdout").touch()
    with (
        opened_watch() as watch,
        watch.watch(tmp_path / "a") as one,
        watch.watch(tmp_path / "a") as two,
        watch.watch(tmp_path / "b") as other,
    ):
        silent = asyncio.create_task(other.wait())
        (tmp_path / "a" / "stdout").write_text("line\n")
        async with asyncio.timeout(30):
            await one.wait()
            await two.wait()
        assert not silent.done()
        silent.cancel()


@pytest.mark.usefixtures("never_polls")
async def test_a_change_between_two_waits_is_not_missed(tmp_path: Path):
    with opened_watch() as watch, watch.watch(tmp_path) as changes:
        (tmp_path / "exit.part").write_text("{}")
        async with asyncio.timeout(30):
            await changes.wait()
            (tmp_path / "exit.part").replace(tmp_path / "exit.json")
            await changes.wait()


@pytest.mark.usefixtures("never_polls")
async def test_one_reader_that_leaves_does_not_end_the_watch_of_another(tmp_path: Path):
    with opened_watch() as watch, watch.watch(tmp_path) as stays:
        with watch.watch(tmp_path):
            pass
        (tmp_path / "stdout").touch()
        async with asyncio.timeout(30):
            await stays.wait()


@pytest.mark.usefixtures("never_polls")
async def test_the_removal_of_the_folder_wakes_its_reader(tmp_path: Path):
    folder = tmp_path / "job"
    folder.mkdir()
    with opened_watch() as watch, watch.watch(folder) as changes:
        folder.rmdir()
        async with asyncio.timeout(30):
            await changes.wait()


async def test_without_inotify_a_reader_polls(tmp_path: Path):
    unopened = FolderWatch()
    with unopened.watch(tmp_path) as changes, unopened.watch(tmp_path / "missing") as missing:
        async with asyncio.timeout(30):
            await changes.wait()
            await missing.wait()


async def test_a_job_that_prints_without_end_does_not_wake_its_reader_for_each_line(tmp_path: Path):
    waits: list[float] = []
    sleep = asyncio.sleep

    async def noted_sleep(delay_s: float) -> None:
        waits.append(delay_s)
        await sleep(0)

    with opened_watch() as watch, watch.watch(tmp_path) as changes, pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "sleep", noted_sleep)
        patch.setattr(output_streams, "POLL_INTERVAL_S", 3600.0)
        for _ in range(output_streams.PROMPT_WAKES + 2):
            changes.notify()
            await changes.wait()
    assert waits == [output_streams.GATHER_S] * (output_streams.PROMPT_WAKES - 1) + [3600.0] * 2
