"""Three hosts that are off, and more jobs than one of them runs in time: all start by themselves and go off again."""

from pathlib import Path

import pytest

from schemas.events import Started
from schemas.job_view import JobView
from schemas.power import PowerState as S
from tests.e2e.power.switched_hosts import PowerScenario, run_switched_installation
from tests.support.job_checks import events_of, read_history
from tests.support.namespaces import HostNetwork
from tests.support.wait import wait_for

pytestmark = [pytest.mark.long(30), pytest.mark.timeout(240)]

NAMES = ("gpu-1", "gpu-2", "gpu-3")
HOSTS = [(name, {"boot_timeout": 90.0}) for name in NAMES]  # three runners that boot at once are slow under load
BURST, MORE = 45, 5
RULE = "[pools.echo]\ntarget_wait_s = 3.0\ncool_down_s = 1.0\n"
WHY = "jobs wait in pool echo: fewer hosts cannot start them within 3 s"


async def submit_until_all_work(scenario: PowerScenario) -> list[JobView]:
    """Submit a burst, and more jobs for as long as a host has run none: a host may boot later than the others."""
    jobs = [await scenario.submit(str(number), seconds=0.4) for number in range(BURST)]

    async def all_work() -> bool:
        used = {(await scenario.running.ann.job(job.id)).host for job in jobs}
        if not used.issuperset(NAMES):
            jobs.extend([await scenario.submit(str(len(jobs) + more), seconds=0.4) for more in range(MORE)])
            return False
        return True

    await wait_for(all_work, timeout_s=100, interval_s=0.5)
    return jobs


async def test_three_dark_hosts_start_for_a_burst_and_go_off_when_it_is_over(net: HostNetwork, tmp_path: Path) -> None:
    async with run_switched_installation(tmp_path, net, HOSTS, RULE) as scenario:
        jobs = await submit_until_all_work(scenario)
        done = await scenario.wait_until_succeeded(*jobs)
        assert [job.output.data["text"] for job in done if job.output] == [str(number) for number in range(len(jobs))]
        for job in done:
            assert len(events_of(await read_history(scenario.running, job.id), Started)) == 1
        whys = set()
        for name, host in scenario.installation.hosts.items():
            record = await scenario.wait_for_state(S.OFF, host=host)
            assert [change.state for change in record.history] == [S.WAKING, S.ONLINE, S.DRAINING, S.STOPPING, S.OFF]
            assert host.calls == ["on", "off"]
            ended = [job.finished_at.timestamp() for job in done if job.host == name and job.finished_at]
            assert host.timed_calls[-1][1] > max(ended)
            whys.add(record.history[0].why)
        assert any(why.endswith(WHY) for why in whys), whys
