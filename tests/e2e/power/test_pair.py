"""Scenarios with two hosts, and with two edges: which host starts when the first is busy, and which edge starts it.

The tests depend on their order: the daily on-time that one of them uses stays used.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from lamplighter import AsyncClient
from schemas.power import PowerState as S
from tests.e2e.power.switched_hosts import PowerScenario, SwitchedHost, run_switched_installation
from tests.support.installation import wait_until_ready
from tests.support.namespaces import HostNetwork

pytestmark = [pytest.mark.long(13), pytest.mark.timeout(240)]
SECONDS_A_DAY = 6
BUDGET = f"{{ hours = {SECONDS_A_DAY / 3600} }}"


@pytest.fixture(scope="module")
async def home(
    net: HostNetwork, tmp_path_factory: pytest.TempPathFactory, anyio_backend: object
) -> AsyncIterator[PowerScenario]:
    """Run `near`, which is preferred and may be on for a few seconds a day, and `far`."""
    hosts = [("near", {"wake_priority": 1, "budget": BUDGET}), ("far", {"wake_priority": 2})]
    async with run_switched_installation(tmp_path_factory.mktemp("pair"), net, hosts) as made:
        yield made


@pytest.fixture
async def scenario(home: PowerScenario) -> AsyncIterator[PowerScenario]:
    await home.wait_until_all_off()
    yield home
    print(home.installation.tail())  # noqa: T201 - shown by pytest when the test failed


def hosts(scenario: PowerScenario) -> tuple[SwitchedHost, SwitchedHost]:
    near, far = scenario.installation.hosts.values()
    return near, far


async def test_the_second_host_is_called_when_the_first_has_no_capacity(scenario: PowerScenario) -> None:
    near, far = hosts(scenario)
    near.plan(no_capacity=1000)
    job = await scenario.submit()
    assert "none in stock" in (await scenario.wait_for_state(S.BLOCKED, host=near)).why
    (done,) = await scenario.wait_until_succeeded(job)
    assert done.host == "far"
    assert set(near.calls) == {"on"}
    assert far.calls[0] == "on"
    await scenario.wait_for_state(S.OFF, host=near)


async def test_a_host_that_has_used_up_its_day_stays_dark_and_the_next_is_called(scenario: PowerScenario) -> None:
    near, far = hosts(scenario)
    job = await scenario.submit(seconds=2 * SECONDS_A_DAY)
    await scenario.wait_for_state(S.DRAINING, host=near)  # a running job is never stopped for that
    (done,) = await scenario.wait_until_succeeded(job)
    assert done.host == "near"
    record_off = await scenario.wait_for_state(S.OFF, host=near)
    assert "its daily budget is used up" in {change.why for change in record_off.history}
    (next_,) = await scenario.wait_until_succeeded(await scenario.submit())
    assert next_.host == "far"
    blocked = [change.why for change in (await scenario.record(near)).history if change.state is S.BLOCKED]
    assert blocked[-1] == "its daily budget is used up"
    assert (near.calls, far.calls[0]) == (["on", "off"], "on")


@asynccontextmanager
async def second_edge(scenario: PowerScenario) -> AsyncIterator[AsyncClient]:
    """Connect ann to a second edge of the same broker; both edges control power."""
    installation = scenario.installation
    async with (
        installation.start_second_edge() as url,
        AsyncClient(url, installation.keys["ann"], cache=installation.folder / "two.json") as ann,
    ):
        await wait_until_ready(ann)
        yield ann


async def test_two_edges_start_a_host_once(scenario: PowerScenario) -> None:
    near, far = hosts(scenario)
    async with second_edge(scenario) as ann_2:
        far.plan(boot_s=2.0)  # by then all of them wait
        clients = (scenario.running.ann, ann_2) * 2
        jobs = [await client.submit("echo", text="x") for client in clients]
        await scenario.wait_until_succeeded(*jobs)
        await scenario.wait_for_state(S.OFF, host=far)
        assert far.calls == ["on", "off"]
        assert near.calls == []  # its on-time of the day is used up
