"""The dead-man timer: a table over a clock that is moved by hand, and a real runner whose broker goes away for good."""

from pathlib import Path

import anyio
import pytest

from runner.deadman import DeadMan, Look, alone_since, bare, due
from runner.idleness import Idleness
from runner.logins import nobody
from runner.means import always
from runner.roster import Roster
from runner.settings import DeadManSettings, RunnerSettings
from schemas.settings import SettingsInvalid, load
from tests.broker import until
from tests.runner.lone import Installation, place
from tests.runner.world import World

__all__ = ["place"]

RULES = DeadManSettings(after_s=60.0)
HEARD = Look(heard=True)
ALONE = Look(heard=False, bare=True)
HOLDS = Look(heard=False, bare=False)
PEOPLE = Look(heard=False, bare=True, used_by=frozenset({"users"}))
PROGRAMS = Look(heard=False, bare=True, used_by=frozenset({"programs"}))

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


def darkens(looks: list[tuple[float, Look]], rules: DeadManSettings) -> float | None:
    since = None
    for now, look in looks:
        since = alone_since(since, look, rules, now)
        if due(since, rules, now):
            return now
    return None


@pytest.mark.parametrize(("looks", "dark_at"), SPELLED)
def test_it_goes_dark_only_after_so_long_alone_and_bare(looks: list[tuple[float, Look]], dark_at: float | None) -> None:
    assert darkens(looks, RULES) == dark_at
    assert darkens(looks, DeadManSettings()) is None


def test_its_owner_may_ignore_the_people() -> None:
    rules = DeadManSettings(after_s=60.0, stays_for=("programs",))
    assert darkens([(0, PEOPLE), (60, PEOPLE)], rules) == 60
    assert darkens([(0, PROGRAMS), (60, PROGRAMS)], rules) is None


def test_it_needs_a_program_to_run() -> None:
    with pytest.raises(SettingsInvalid, match="set poweroff"):
        load(RunnerSettings, "[dead_man]\nafter_s = 600", {})


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def silent() -> bool:
    return False


async def test_a_container_in_any_state_an_unsaved_output_and_an_open_message_keep_it_on(world: World) -> None:
    key = await world.submit("well")
    async with world.life() as running, anyio.create_task_group() as tasks:
        await world.ended(key)
        await world.cleared()
        roster = Roster(running.life, tasks, lambda _: None)
        idleness = Idleness(running.means.slots, running.means.cards, nobody, roster)
        man = DeadMan(running.life, RULES, idleness, silent)
        assert await man.look() == Look(heard=False), "what earlier lives left was not looked at yet"
        idleness.settled = True
        assert await man.look() == ALONE
        permit = running.means.slots.adopt(key)
        permit.poisoned(key)
        assert await man.look() == Look(heard=False)
        running.means.slots.heal(key)
        left = running.life.jobs / "ada.j1.1.1"
        left.mkdir()
        assert await man.look() == Look(heard=False)
        left.rmdir()
        assert await man.look() == ALONE
        assert await DeadMan(running.life, RULES, idleness, always).look() == HEARD
        world.broker.stop()
        assert await DeadMan(running.life, RULES, idleness, always).look() == ALONE


async def test_a_result_that_cannot_be_saved_keeps_it_on(world: World) -> None:
    world.shop.away = True
    await world.submit("well")
    async with world.life() as running:
        await world.shop.asked.wait()
        world.broker.stop()
        assert not await bare(running.life)


async def test_a_runner_whose_broker_is_gone_switches_its_machine_off(place: Installation) -> None:
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
        await place.ended(key)
        await until(put_away)  # a message without its answer keeps the machine on, for ever if need be
        assert not dark.exists()
        await place.server.kill()
        await until(switched_off)
