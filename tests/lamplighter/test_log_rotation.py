"""The log files of `up` stay below a limit, though their writers keep them open."""

import os
import stat
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from lamplighter.cli import log_output
from lamplighter.cli.log_output import rotate, rotate_forever
from tests.support.wait import wait_for


def test_what_is_written_moves_to_copies_of_which_the_oldest_goes(tmp_path: Path) -> None:
    file = tmp_path / "edge.log"
    with file.open("ab", buffering=0) as writer:
        os.fchmod(writer.fileno(), 0o600)
        for line in (b"first\n", b"second\n", b"third\n", b"fourth\n"):
            writer.write(line)
            assert rotate(file, limit_bytes=4, copies=2)
        writer.write(b"now\n")
        assert not rotate(file, limit_bytes=100)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {
        "edge.log": b"now\n",
        "edge.log.1": b"fourth\n",
        "edge.log.2": b"third\n",
    }
    assert {stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()} == {0o600}


def test_a_file_that_does_not_exist_is_not_made(tmp_path: Path) -> None:
    assert not rotate(tmp_path / "edge.log", limit_bytes=0)
    assert list(tmp_path.iterdir()) == []


def test_without_room_for_a_copy_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no room")

    file = tmp_path / "edge.log"
    file.write_bytes(b"line\n")
    monkeypatch.setattr("lamplighter.cli.log_output.shutil.copyfileobj", fail)
    with pytest.raises(OSError, match="no room"):
        rotate(file, limit_bytes=1)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {"edge.log": b"line\n"}
    with capture_logs() as said:
        log_output._rotate_all([tmp_path / "broken.log", file])
    assert said == []  # it is below the limit of `up`


async def test_files_are_rotated_while_up_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_output, "ROTATION_CHECK_INTERVAL_S", 0.01)
    file, blocked = tmp_path / "edge.log", tmp_path / "runner.log"
    for one in (file, blocked):
        one.write_bytes(b"x" * log_output.LOG_FILE_LIMIT_BYTES)
    (tmp_path / "runner.log.0").mkdir()  # a copy cannot be made

    async def is_rotated() -> bool:
        return file.stat().st_size == 0 and any(line["event"] == "log_rotation_failed" for line in said)

    with capture_logs() as said:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rotate_forever, (blocked, file))
            await wait_for(is_rotated)
            tasks.cancel_scope.cancel()
    assert (tmp_path / "edge.log.1").stat().st_size == log_output.LOG_FILE_LIMIT_BYTES
    assert blocked.stat().st_size == log_output.LOG_FILE_LIMIT_BYTES
