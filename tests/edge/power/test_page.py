"""The settings in docs/power.md: the edge and the runner can load them, and they show the defaults."""

import pytest
from msgspec.structs import asdict

from edge.settings import EdgeSettings
from runner.settings import RunnerSettings
from schemas.host_config import CommandHostConfig, PoolConfig
from schemas.settings_loader import load_settings
from tests.support.doc_pages import DOCS, read_blocks

PAGE = DOCS / "power.md"
EDGE, RUNNER, POOL = read_blocks(PAGE, "toml")


def test_the_host_of_the_page_is_read_and_shows_the_defaults() -> None:
    host = load_settings(EdgeSettings, EDGE, {}).hosts["gpu-1"]
    plain = asdict(CommandHostConfig(on=("on",)))
    chosen = {"on", "state", "timezone", "quiet_hours", "budget", "price"}
    assert {name: value for name, value in asdict(host).items() if name not in chosen} == {
        name: value for name, value in plain.items() if name not in chosen
    }
    told = {line.split(" =")[0] for line in EDGE.splitlines()[1:]} - {"driver"}
    assert told == set(CommandHostConfig.__struct_encode_fields__) - {"off", "states", "timeout"}


def test_the_pool_of_the_page_is_read_and_shows_the_defaults() -> None:
    assert load_settings(EdgeSettings, POOL, {}).pools == {"lipsync": PoolConfig()}
    told = {line.removeprefix("# ").split(" =")[0] for line in POOL.splitlines()[1:]}
    assert told == set(PoolConfig.__struct_encode_fields__)


def test_the_runner_of_the_page_is_read() -> None:
    runner = load_settings(RunnerSettings, RUNNER, {})
    assert (runner.dead_man.after_s, runner.poweroff) == (1800, ("systemctl", "poweroff"))


@pytest.mark.parametrize("word", ["queued", "uploading", "unrecovered", "users", "programs"])
def test_the_page_names_what_the_host_tells(word: str) -> None:
    assert f"`{word}`" in PAGE.read_text()
