"""Power scenarios: a host in another namespace, joined over TLS, that its edge starts and stops by itself.

The tests of this file share one host and run in order; each begins and ends with the host off.
"""

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest

from lamplighter import api
from schemas.events import AttemptReleased, Started
from schemas.power import PowerRecord
from schemas.power import PowerState as S
from tests.e2e.power.switched_hosts import STATE_TIMEOUT_S, TLS_PORT, PowerScenario, run_switched_installation
from tests.support.installation import wait_until_ready
from tests.support.job_checks import events_of, read_history, wait_for_reason, wait_until_running
from tests.support.namespaces import HostNetwork
from tests.support.wait import retry_bus_call, wait_for

pytestmark = [pytest.mark.long(13), pytest.mark.timeout(240)]
ROUND = [S.WAKING, S.ONLINE, S.DRAINING, S.STOPPING, S.OFF]


@pytest.fixture(scope="module")
async def home(
    net: HostNetwork, tmp_path_factory: pytest.TempPathFactory, anyio_backend: object
) -> AsyncIterator[PowerScenario]:
    async with run_switched_installation(tmp_path_factory.mktemp("power"), net, [("gpu-1", {})]) as made:
        yield made


@pytest.fixture
async def scenario(home: PowerScenario) -> AsyncIterator[PowerScenario]:
    """Lend the installation to a test: the host is off and no job waits."""
    await home.wait_until_all_off()
    yield home
    print(home.installation.tail())  # noqa: T201 - shown by pytest when the test failed


def since(record: PowerRecord, at: datetime) -> list[S]:
    """Return the states that the host has passed through since then."""
    return [change.state for change in record.history if change.at >= at]


async def test_the_first_job_ever_lights_a_host_that_was_never_seen(scenario: PowerScenario) -> None:
    assert "gpu-1" not in await retry_bus_call(scenario.running.bus.capabilities.rows)
    job = await scenario.submit("first")
    await scenario.wait_for_state(S.WAKING)
    await wait_for_reason(scenario.running, job.id, "host_waking", "host_booting")
    await scenario.wait_until_succeeded(job)
    assert since(await scenario.wait_for_state(S.OFF), job.created_at) == ROUND
    assert scenario.host.calls == ["on", "off"]


async def test_ten_jobs_while_it_wakes_are_one_start(scenario: PowerScenario) -> None:
    scenario.host.plan(boot_s=1.0)
    first = await scenario.submit("0")
    await scenario.wait_for_state(S.WAKING)
    others = [await scenario.submit(str(number)) for number in range(1, 10)]
    await scenario.wait_until_succeeded(first, *others)
    assert since(await scenario.wait_for_state(S.OFF), first.created_at) == ROUND
    assert scenario.host.calls == ["on", "off"]


async def test_no_capacity_twice_is_waited_out(scenario: PowerScenario) -> None:
    scenario.host.plan(no_capacity=2)
    job = await scenario.submit()
    blocked = await scenario.wait_for_state(S.BLOCKED)
    assert "none in stock" in blocked.why
    await scenario.wait_until_succeeded(job)
    assert scenario.host.calls[:3] == ["on", "on", "on"]
    assert since(await scenario.wait_for_state(S.OFF), job.created_at)[:4] == [S.WAKING, S.BLOCKED, S.WAKING, S.ONLINE]


async def test_a_boot_that_fails_gets_one_power_cycle(scenario: PowerScenario) -> None:
    scenario.host.plan(boots_that_fail=1)

    async def is_stopped() -> bool:
        return "off" in scenario.host.calls

    with scenario.hurry():
        job = await scenario.submit()
        await wait_for(is_stopped, timeout_s=STATE_TIMEOUT_S)
    await scenario.wait_until_succeeded(job)
    assert scenario.host.calls[:3] == ["on", "off", "on"]
    assert since(await scenario.record(), job.created_at)[:5] == [S.WAKING, S.STOPPING, S.OFF, S.WAKING, S.ONLINE]


async def test_a_job_that_comes_while_it_drains_keeps_it_on(scenario: PowerScenario) -> None:
    """The runner may take the job before or after it reads the power command; the host is not stopped before."""
    first = await scenario.submit("first")
    await scenario.wait_until_succeeded(first)
    await scenario.wait_for_state(S.DRAINING)
    second = await scenario.submit("second", seconds=1.0)
    (done,) = await scenario.wait_until_succeeded(second)
    record_off = await scenario.wait_for_state(S.OFF)
    assert since(record_off, first.created_at) in (ROUND, [S.WAKING, S.ONLINE, S.DRAINING, *ROUND[1:]])
    assert scenario.host.calls == ["on", "off"]
    assert done.finished_at is not None
    assert scenario.host.timed_calls[-1][1] > done.finished_at.timestamp()


async def test_a_job_that_comes_while_it_stops_waits_until_it_is_off(scenario: PowerScenario) -> None:
    scenario.host.plan(hangs=True)
    first = await scenario.submit("first")
    await scenario.wait_until_succeeded(first)
    await scenario.wait_for_calls("on", "off")
    second = await scenario.submit("second")
    assert (await scenario.record()).state is S.STOPPING
    await wait_for_reason(scenario.running, second.id, "paused", "host_off")  # its runner deletes its heartbeat
    scenario.host.plan()
    await scenario.wait_until_succeeded(second)
    assert since(await scenario.wait_for_state(S.OFF), first.created_at) == ROUND + ROUND
    assert scenario.host.calls == ["on", "off"]


async def test_a_host_that_hangs_while_it_stops_is_a_fault_until_its_owner_looks(scenario: PowerScenario) -> None:
    scenario.host.plan(hangs=True)
    await scenario.wait_until_succeeded(await scenario.submit())
    await scenario.wait_for_calls("on", "off")
    with scenario.hurry():
        fault = await scenario.wait_for_state(S.FAULT)
    assert fault.why == "it did not power off in time"
    job = await scenario.submit("while it is at fault")
    scenario.host.plan()
    await wait_for_reason(scenario.running, job.id, "host_fault")
    assert scenario.host.calls == []
    await scenario.running.admin.call(api.set_power("gpu-1", "auto", None))
    await scenario.wait_until_succeeded(job)
    await scenario.wait_for_state(S.OFF)


async def test_it_stays_on_over_a_result_that_cannot_be_brought_home(scenario: PowerScenario, tmp_path: Path) -> None:
    file = tmp_path / "result.bin"
    file.write_bytes(b"x" * (2 << 20))
    job = await scenario.submit(file=file, seconds=1.5)
    await wait_until_running(scenario.running, job.id)
    scenario.installation.net.cut(TLS_PORT)
    try:
        before = await scenario.record()

        async def uploading() -> bool:
            return (await scenario.presence()).activity.uploading > 0

        await wait_for(uploading, timeout_s=60)
        await scenario.wait_for_heartbeats(3.0)
        assert (await scenario.record()).history == before.history
        assert scenario.host.calls == ["on"]
    finally:
        scenario.installation.net.heal(TLS_PORT)
    await scenario.wait_until_succeeded(job)
    await scenario.wait_for_state(S.OFF)
    assert scenario.host.calls == ["on", "off"]


async def test_a_broker_that_restarts_means_nothing_for_the_light(scenario: PowerScenario) -> None:
    await restart_broker(scenario)  # the host is off
    job = await scenario.submit(seconds=3)
    await wait_until_running(scenario.running, job.id)
    await restart_broker(scenario)  # while a job runs
    await scenario.wait_until_succeeded(job)
    steps = await read_history(scenario.running, job.id)
    assert len(events_of(steps, Started)) == 1
    assert not events_of(steps, AttemptReleased)
    assert since(await scenario.wait_for_state(S.OFF), job.created_at) == ROUND
    assert scenario.host.calls == ["on", "off"]


async def restart_broker(scenario: PowerScenario) -> None:
    await scenario.installation.server.kill()
    await scenario.installation.server.start()
    await wait_until_ready(scenario.running.ann)

    async def back() -> bool:
        return scenario.running.bus.health.is_connected

    await wait_for(back)


async def test_an_edge_that_restarts_while_a_host_wakes_goes_on(scenario: PowerScenario) -> None:
    scenario.host.plan(boot_s=2.0)
    job = await scenario.submit()
    await scenario.wait_for_state(S.WAKING)
    await scenario.wait_for_calls("on")
    await scenario.installation.edge.kill()
    await scenario.installation.start_edge_again()
    await wait_until_ready(scenario.running.ann)
    await scenario.wait_until_succeeded(job)
    assert since(await scenario.wait_for_state(S.OFF), job.created_at) == ROUND
    assert scenario.host.calls == ["on", "off"]


async def test_its_owner_keeps_it_dark_and_keeps_it_on(scenario: PowerScenario) -> None:
    await scenario.running.admin.call(api.set_power("gpu-1", "off", None))
    job = await scenario.submit()
    blocked = await scenario.wait_for_state(S.BLOCKED)
    assert "operator wants it off" in blocked.why
    await wait_for_reason(scenario.running, job.id, "host_blocked")
    assert scenario.host.calls == []
    await scenario.running.admin.call(api.set_power("gpu-1", "on", None))
    await scenario.wait_until_succeeded(job)
    await scenario.wait_for_heartbeats(3.0)
    assert (await scenario.record()).state is S.ONLINE
    assert scenario.host.calls == ["on"]
    await scenario.running.admin.call(api.set_power("gpu-1", "auto", None))
    await scenario.wait_for_state(S.OFF)
