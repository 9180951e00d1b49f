"""Selection of the engine: decided once for a data folder, whatever answers later; only a setting changes it."""

import json
import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runner.engines import selection
from runner.engines.process_job import BUBBLEWRAP_NOT_INSTALLED, find_bubblewrap
from runner.engines.selection import (
    DECISION_FILE,
    EngineChoice,
    EngineConfig,
    EngineDecision,
    EngineDecisionUnreadable,
    EngineUnusable,
    SelectedEngine,
    choose_engine,
    find_docker,
    preview_engine,
    select_engine,
)
from tests.support.job_user import why_no_sandbox, why_not_nobody
from tests.support.requirements import require

NOW = datetime(2026, 11, 29, tzinfo=UTC)
LATER = datetime(2026, 11, 30, tzinfo=UTC)
CLIENT = "docker is installed"


@pytest.mark.parametrize(("client", "engine"), [(CLIENT, "docker"), (None, "process")])
def test_auto_decides_at_the_first_start_and_never_again(tmp_path: Path, client: str | None, engine: str) -> None:
    first = choose_engine(tmp_path, "auto", client, NOW)
    assert (first.decision.engine, first.decision.at, first.previous) == (engine, NOW, None)
    for later in (CLIENT, None):
        assert choose_engine(tmp_path, "auto", later, LATER) == EngineChoice(first.decision)


@pytest.mark.parametrize("engine", ["docker", "process"])
def test_an_engine_asked_for_by_name_wins_and_is_kept(tmp_path: Path, engine: str) -> None:
    other = "process" if engine == "docker" else "docker"
    choose_engine(tmp_path, "auto", CLIENT if other == "docker" else None, NOW)
    made = choose_engine(tmp_path, engine, CLIENT, LATER)
    assert (made.decision.engine, made.previous) == (engine, other)
    assert f"engine = {engine}" in made.decision.why
    assert choose_engine(tmp_path, "auto", None, LATER) == EngineChoice(made.decision)
    assert choose_engine(tmp_path, engine, None, LATER) == EngineChoice(made.decision)


async def test_a_sandbox_is_remembered_while_jobs_run_in_docker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = EngineDecision("process", "asked for by name: engine = process", NOW, has_sandbox=True)
    (tmp_path / DECISION_FILE).write_bytes(msgspec.json.encode(kept))
    choose_engine(tmp_path, "docker", CLIENT, LATER)
    monkeypatch.setattr(selection, "find_bubblewrap", lambda: None)
    with pytest.raises(EngineUnusable, match="bubblewrap is not installed"):
        await select(tmp_path, "auto")
    assert "or a sandbox" not in (await select(tmp_path, "none")).summary
    assert f"or a sandbox ({BUBBLEWRAP_NOT_INSTALLED}" in (await select(tmp_path, "auto")).summary


@pytest.mark.parametrize("asked", ["auto", "docker", "process"])
@pytest.mark.parametrize("client", [CLIENT, None])
@pytest.mark.parametrize("kept", ["docker", "process", None])
def test_a_preview_is_what_a_start_would_choose_and_keeps_nothing(
    tmp_path: Path, asked: Any, client: str | None, kept: Any
) -> None:
    if kept is not None:
        choose_engine(tmp_path, kept, None, NOW)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    previewed = preview_engine(tmp_path, asked, client, LATER)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert choose_engine(tmp_path, asked, client, LATER).decision.engine == previewed


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b'{"engine":"podman","why":"","at":"2026-11-29T00:00:00Z"}'])
def test_a_decision_that_cannot_be_read_is_not_made_again(tmp_path: Path, content: bytes) -> None:
    (tmp_path / DECISION_FILE).write_bytes(content)
    for asked in ("auto", "docker", "process"):
        with pytest.raises(EngineDecisionUnreadable, match=r"engine.json.*cannot be read.*delete it"):
            choose_engine(tmp_path, asked, CLIENT, NOW)
    assert (tmp_path / DECISION_FILE).read_bytes() == content


def test_it_is_written_whole_and_for_its_owner_alone(tmp_path: Path) -> None:
    choose_engine(tmp_path, "auto", CLIENT, NOW)
    assert [path.name for path in tmp_path.iterdir()] == [DECISION_FILE]
    assert (tmp_path / DECISION_FILE).stat().st_mode & 0o777 == 0o600
    assert json.loads((tmp_path / DECISION_FILE).read_text())["engine"] == "docker"


def test_what_a_newer_release_adds_to_it_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / DECISION_FILE).write_text('{"engine":"process","why":"w","at":"2026-11-29T00:00:00Z","new":1}')
    assert choose_engine(tmp_path, "auto", CLIENT, LATER).decision == EngineDecision("process", "w", NOW)


def test_what_makes_a_machine_one_with_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that a client or an address counts, never an answer: Docker may be starting, as this runner is."""
    empty, socket = {"PATH": str(tmp_path)}, tmp_path / "docker.sock"
    monkeypatch.setattr(selection, "DOCKER_SOCKET", str(socket))
    assert find_docker(None, empty) is None
    assert find_docker("/nowhere.sock", empty) == "docker_socket names /nowhere.sock"
    assert find_docker(None, {**empty, "DOCKER_HOST": "unix:///no.sock"}) == "DOCKER_HOST names unix:///no.sock"
    socket.touch()
    assert find_docker(None, empty) == f"{socket} exists"
    program = tmp_path / "docker"
    program.touch()
    program.chmod(0o755)
    assert find_docker(None, empty) == f"{program} is installed"
    assert find_docker(None, {**empty, "PATH": os.devnull}) == f"{socket} exists"


@pytest.fixture
def reachable_folder() -> Iterator[Path]:
    """Return a folder that the user of jobs may enter: that of pytest is private."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


def make_jobs_dir(data: Path) -> None:
    (data / "jobs").mkdir(exist_ok=True)
    data.chmod(0o711)


async def select(data: Path, sandbox: Any) -> SelectedEngine:
    make_jobs_dir(data)
    user = "" if why_not_nobody() else None
    config = EngineConfig(data=data, engine="process", docker_socket=None, job_user=user, slots=1, sandbox=sandbox)
    return await select_engine(config, [], NOW)


async def isolation_of(selected: SelectedEngine) -> str:
    return (await selected.engine.probe()).isolation


@pytest.mark.parametrize(
    ("asked", "isolation"), [("auto", "bubblewrap"), ("bubblewrap", "bubblewrap"), ("none", "process")]
)
async def test_a_sandbox_is_given_where_the_settings_ask_for_one(tmp_path: Path, asked: str, isolation: str) -> None:
    require(why_no_sandbox(), "REQUIRE_SANDBOX")
    selected = await select(tmp_path, asked)
    assert await isolation_of(selected) == isolation
    assert ("each in a sandbox" in selected.summary) == (isolation == "bubblewrap")


FAILS = "#!/bin/sh\necho 'bwrap: Creating new namespace failed: Operation not permitted' >&2\nexit 1\n"


@pytest.mark.parametrize("is_installed", [True, False])
async def test_without_a_sandbox_auto_says_why_and_bubblewrap_does_not_start(
    tmp_path: Path, reachable_folder: Path, monkeypatch: pytest.MonkeyPatch, is_installed: bool
) -> None:
    program = reachable_folder / "bwrap"
    program.write_text(FAILS)
    program.chmod(0o755)
    monkeypatch.setattr(selection, "find_bubblewrap", lambda: str(program) if is_installed else None)
    why = (
        "bwrap: Creating new namespace failed: Operation not permitted: let"
        if is_installed
        else BUBBLEWRAP_NOT_INSTALLED
    )
    selected = await select(tmp_path, "auto")
    assert f"or a sandbox ({why}" in selected.summary
    assert await isolation_of(selected) == "process"
    with pytest.raises(EngineUnusable) as refused:
        await select(tmp_path, "bubblewrap")
    assert f"jobs cannot run in a sandbox ({why}" in str(refused.value)
    assert 'set [process] sandbox = "none"' in str(refused.value)


async def test_a_sandbox_that_worked_is_not_left_out_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(why_no_sandbox(), "REQUIRE_SANDBOX")
    for _ in range(2):
        assert await isolation_of(await select(tmp_path, "auto")) == "bubblewrap"
    with monkeypatch.context() as patch:
        patch.setattr(selection, "find_bubblewrap", lambda: None)
        for asked in ("auto", "bubblewrap"):
            with pytest.raises(EngineUnusable, match=r"sandbox .*bubblewrap is not installed"):
                await select(tmp_path, asked)
        assert await isolation_of(await select(tmp_path, "none")) == "process"
        assert await isolation_of(await select(tmp_path, "auto")) == "process"


def test_a_bubblewrap_on_the_path_comes_before_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_bubblewrap() != str(tmp_path / "bwrap")
    (tmp_path / "bwrap").write_text(FAILS)
    (tmp_path / "bwrap").chmod(0o755)
    assert find_bubblewrap() == str(tmp_path / "bwrap")
