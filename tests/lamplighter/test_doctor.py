"""What `doctor` says of hosts and of this machine, by situation."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lamplighter.cli.doctor import CheckStatus, _describe_host, _is_server_without_runner
from lamplighter.cli.machine_checks import check_own_container
from runner.engines import selection
from runner.engines.selection import choose_engine

WOKEN = [{"at": "2026-11-30T00:00:00Z", "state": "off", "why": "no work"}]


@pytest.mark.parametrize(
    ("state", "history", "verdict", "fix"),
    [
        ("online", [], CheckStatus.OK, ""),
        ("off", WOKEN, CheckStatus.OK, ""),
        ("waking", WOKEN, CheckStatus.OK, ""),
        ("off", [], CheckStatus.WARN, "start its runner, or declare [hosts.gpu-1]"),
        (
            "fault",
            [{**WOKEN[0], "why": "no route"}],
            CheckStatus.WARN,
            "no route; when it is repaired: lamplighter power",
        ),
    ],
)
def test_a_host_that_is_off_is_a_warning_only_if_nothing_can_power_it_on(
    state: str, history: list[dict[str, Any]], verdict: CheckStatus, fix: str
) -> None:
    found = _describe_host({"id": "gpu-1", "state": state, "history": history, "endpoints": ["echo"]})
    assert found.verdict is verdict
    assert found.fix.startswith(fix)
    assert bool(found.fix) is bool(fix)


@pytest.mark.parametrize(
    ("folders", "is_server"), [(("edge",), True), (("edge", "runner"), False), (("runner",), False), ((), False)]
)
def test_a_server_without_a_runner_needs_neither_docker_nor_a_gpu(
    tmp_path: Path, folders: tuple[str, ...], is_server: bool
) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
    assert _is_server_without_runner(tmp_path) is is_server


@pytest.mark.parametrize(
    ("environ", "file", "names"),
    [
        ({"LAMPLIGHTER_ENGINE": "process"}, "", []),
        ({}, 'engine = "process"', []),
        ({"LAMPLIGHTER_ENGINE": "docker"}, 'engine = "process"', ["container"]),
        ({"LAMPLIGHTER_ENGINE": "podman"}, "", ["runner"]),
    ],
)
async def test_a_container_without_dockers_socket_matters_only_to_a_runner_with_docker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], file: str, names: list[str]
) -> None:
    mark = tmp_path / "dockerenv"
    mark.touch()
    monkeypatch.setattr(selection, "DOCKER_MARK", mark)
    monkeypatch.setattr(selection, "has_dockerd", lambda: False)
    (tmp_path / "lamplighter.toml").write_text(file)
    given = {"CONFIG": str(tmp_path / "lamplighter.toml"), "DOCKER_SOCKET": str(tmp_path / "docker.sock")}
    for name, value in ({f"LAMPLIGHTER_{name}": value for name, value in given.items()} | environ).items():
        monkeypatch.setenv(name, value)
    found = await check_own_container(tmp_path)
    assert [(finding.name, finding.verdict) for finding in found] == [(name, CheckStatus.FAIL) for name in names]


async def test_the_engine_that_up_chose_before_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "dockerenv"
    mark.touch()
    monkeypatch.setattr(selection, "DOCKER_MARK", mark)
    monkeypatch.setattr(selection, "has_dockerd", lambda: False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAMPLIGHTER_DOCKER_SOCKET", str(tmp_path / "docker.sock"))
    assert [finding.name for finding in await check_own_container(tmp_path)] == ["container"]
    (tmp_path / "runner").mkdir()
    choose_engine(tmp_path / "runner", "process", None, datetime.now(UTC))
    assert await check_own_container(tmp_path) == []
