"""The dead-man timer: a table over a clock moved by hand, and a real runner whose broker goes away for good."""

from pathlib import Path

import anyio
import pytest

from runner.claiming.schedulability import HostState
from runner.context import is_always_alive
from runner.execution.execution import ExecutionRegistry
from runner.host.presence import DeadManObservation, DeadManTimer, HostActivity, is_due, is_free_of_jobs, unneeded_since
from runner.host_facts import no_logged_in_users
from runner.settings import DeadManSettings, RunnerSettings
from schemas.settings_loader import SettingsInvalid, load_settings
from tests.runner.runner_processes import RunnerProcesses, place
from tests.support.runner_environment import RunnerEnvironment
from tests.support.wait import wait_for

__all__ = ["place"]

RULES = DeadManSettings(after_s=60.0)
HEARD = DeadManObservation(is_connected=True)
ALONE = DeadManObservation(is_connected=False, is_free_of_jobs=True)
HOLDS = DeadManObservation(is_connected=False, is_free_of_jobs=False)
PEOPLE = DeadManObservation(is_connected=False, is_free_of_jobs=True, used_by=frozenset({"users"}))
PROGRAMS = DeadManObservation(is_connected=False, is_free_of_jobs=True, used_by=frozenset({"programs"}))

# Looks at these seconds, and when it goes dark (None: it stays on).
SPELLED = [
    ([(0, ALONE), (30, ALONE), (59.9, ALONE)], None),
    ([(0, ALONE), (30, ALONE), (60, ALONE)], 60),
    ([(0, ALONE), (1000, ALONE)], 1000),
    ([(0, HEARD), (1000, HEARD)], None),
    ([(0, ALONE), (59, HEARD), (70, ALONE), (129, ALONE), (130, ALONE)], 130),
    ([(0, ALONE), (59, HOLDS), (70, ALONE), (129, ALONE)], None),
    ([(0, HOLDS), (1000, HOLDS)], None),
    ([(0, PEOPLE), (1000, PEOPLE)], None),
    ([(0, PROGRAMS), (1000, PROGRAMS), (1001, ALONE), (1061, ALONE)], 1061),
]


def darkens(looks: list[tuple[float, DeadManObservation]], rules: DeadManSettings) -> float | None:
    since = None
    for now, look in looks:
        since = unneeded_since(since, look, rules, now)
        if is_due(since, rules, now):
            return now
    return None


@pytest.mark.parametrize(("looks", "dark_at"), SPELLED)
def test_it_goes_dark_only_after_so_long_alone_and_bare(
    looks: list[tuple[float, DeadManObservation]], dark_at: float | None
) -> None:
    assert darkens(looks, RULES) == dark_at
    assert darkens(looks, DeadManSettings()) is None


def test_its_owner_may_ignore_the_people() -> None:
    rules = DeadManSettings(after_s=60.0, keep_on_for=("programs",))
    assert darkens([(0, PEOPLE), (60, PEOPLE)], rules) == 60
    assert darkens([(0, PROGRAMS), (60, PROGRAMS)], rules) is None


def test_it_needs_a_program_to_run() -> None:
    with pytest.raises(SettingsInvalid, match="set poweroff"):
        load_settings(RunnerSettings, "[dead_man]\nafter_s = 600", {})


@pytest.fixture
def world(tmp_path: Path) -> RunnerEnvironment:
    return RunnerEnvironment(tmp_path)


async def silent() -> bool:
    return False


async def test_a_container_in_any_state_an_unsaved_output_and_an_open_message_keep_it_on(
    world: RunnerEnvironment,
) -> None:
    key = await world.submit("well")
    async with world.run_runner() as running, anyio.create_task_group() as tasks:
        await world.wait_until_ended(key)
        await world.wait_until_clean()
        roster = ExecutionRegistry(running.context, tasks, lambda _: None)
        state = HostState()
        idleness = HostActivity(running.host.slots, running.host.gpu_allocator, no_logged_in_users, roster, state)
        man = DeadManTimer(running.context, RULES, idleness, silent)
        assert await man.observe() == DeadManObservation(is_connected=False), "recovery is not complete yet"
        state.set_recovered()
        assert await man.observe() == ALONE
        permit = running.host.slots.take_for_recovered(key)
        permit.poison(key, lambda: None)
        assert await man.observe() == DeadManObservation(is_connected=False)
        running.host.slots.clear_poison(key)
        left = running.context.jobs_dir / "ada.j1.1.1"
        left.mkdir()
        assert await man.observe() == DeadManObservation(is_connected=False)
        left.rmdir()
        assert await man.observe() == ALONE
        assert await DeadManTimer(running.context, RULES, idleness, is_always_alive).observe() == HEARD
        world.broker.stop()
        assert await DeadManTimer(running.context, RULES, idleness, is_always_alive).observe() == ALONE


async def test_a_result_that_cannot_be_saved_keeps_it_on(world: RunnerEnvironment) -> None:
    world.assets.away = True
    await world.submit("well")
    async with world.run_runner() as running:
        await world.assets.asked.wait()
        world.broker.stop()
        assert not await is_free_of_jobs(running.context)


async def test_a_runner_whose_broker_is_gone_switches_its_machine_off(place: RunnerProcesses) -> None:
    dark = place.folder / "dark"
    place.environ |= {
        "LAMPLIGHTER_POWEROFF": f'["touch", "{dark}"]',
        "LAMPLIGHTER_DEAD_MAN__AFTER_S": "0.5",
        "LAMPLIGHTER_DEAD_MAN__STAYS_FOR": "[]",
        "LAMPLIGHTER_PACE__PRESENCE_S": "0.1",
    }
    key = await place.submit(text="hello")

    async def put_away() -> bool:
        return not list((place.folder / "runner" / "jobs").iterdir())

    async def switched_off() -> bool:
        return dark.exists()

    async with place.runner():
        await place.wait_until_ended(key)
        await wait_for(put_away)  # a message without its answer keeps the machine on, for ever if need be
        assert not dark.exists()
        await place.server.kill()
        await wait_for(switched_off)
