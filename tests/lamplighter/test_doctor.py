"""What `doctor` says of hosts and of this machine, by situation."""

from pathlib import Path
from typing import Any

import pytest

from lamplighter.cli.doctor import CheckStatus, _describe_host, _is_server_without_runner

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
