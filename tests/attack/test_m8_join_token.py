"""M8: the token of `runner --join` must not appear in the process list, which every local user can read."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from schemas.credentials import JoinToken, encode_join_token
from tests.support.installation import ROOT
from tests.support.wait import wait_for_sync

ENDED_S = 60


@pytest.fixture
def token() -> Iterator[str]:
    """Return a token of an edge that accepts connections and sends nothing, so that the enrollment does not finish."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        yield encode_join_token(
            JoinToken(
                host="gpu-1",
                edge=f"https://{where}",
                broker=f"tls://{where}",
                user="u",
                password="p" * 40,
                key="k",
                edge_pin="0" * 64,
            )
        )


@contextmanager
def runner(folder: Path, *words: str, given: str | None = None, **environ: str) -> Iterator[subprocess.Popen[str]]:
    (folder / "lamplighter.toml").write_text("")
    argv = [sys.executable, "-m", "lamplighter", "runner", "--config", str(folder / "lamplighter.toml"), *words]
    env = os.environ | environ | {"LAMPLIGHTER_DATA": str(folder / "data")}
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=env) as process:
        try:
            if given is not None and process.stdin is not None:
                process.stdin.write(given)
                process.stdin.close()
            yield process
        finally:
            process.kill()


def shown(process: subprocess.Popen[str]) -> list[str]:
    return Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")


@pytest.mark.parametrize("form", ["apart", "joined"])
def test_it_is_gone_from_the_command_line(tmp_path: Path, token: str, form: str):
    words = ("--join", token) if form == "apart" else (f"--join={token}",)
    with runner(tmp_path, *words) as process:
        wait_for_sync(lambda: "runner" in shown(process))
        wait_for_sync(lambda: token not in "".join(shown(process)), timeout_s=10)
        assert process.poll() is None, process.communicate()
        line = shown(process)
        assert line[-2].endswith("*" * len(token))
        assert line[3] == "runner", "the rest of it is as it was"


def test_what_was_hidden_is_what_joins(tmp_path: Path):
    """The token is decoded after it was overwritten in the process list, and its errors are still reported."""
    with runner(tmp_path, "--join", "nonsense") as process:
        _, said = process.communicate(timeout=ENDED_S)
    assert process.returncode == 2
    assert "not a join token" in said


@pytest.mark.parametrize("way", ["file", "input", "environment"])
def test_it_may_come_by_a_way_that_nobody_reads(tmp_path: Path, way: str):
    """An invalid token as well: its error shows that it was read."""
    (tmp_path / "token").write_text("nonsense\n")
    words = {"file": ("--join", f"@{tmp_path / 'token'}"), "input": ("--join", "-"), "environment": ()}[way]
    given = "nonsense\n" if way == "input" else None
    environ = {"LAMPLIGHTER_JOIN": "nonsense"} if way == "environment" else {}
    with runner(tmp_path, *words, given=given, **environ) as process:
        said = process.stderr.read() if process.stderr else ""
        assert process.wait(ENDED_S) == 2
    assert "not a join token" in said


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with runner(tmp_path, "--join", f"@{tmp_path / 'nothing'}") as process:
        _, said = process.communicate(timeout=ENDED_S)
    assert process.returncode == 2
    assert "cannot be read" in said
