"""The contract of every power driver: the fake, programs, a webhook, a relay and a cloud.

Wake-on-LAN cannot report a state and is tested in tests/edge/power/test_switches.py.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from edge.power.driver_calls import StateReport, call_driver, query_cluster, query_driver
from schemas.power import ClusterPowerDriver, PowerCallOutcome, PowerDriver, PowerVerb, ReportedPower
from tests.contract.power_driver_rigs import CLUSTERS, RIGS, DriverRig

TIMEOUT_S = 20.0


@pytest.fixture(params=sorted(RIGS))
async def rig(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: object) -> AsyncIterator[DriverRig]:
    async with RIGS[request.param](tmp_path) as made:
        yield made


async def press(rig: DriverRig, verb: PowerVerb, call_id: str = "call-1") -> PowerCallOutcome:
    return (await call_driver(rig.driver, verb, call_id, TIMEOUT_S)).outcome


async def test_it_goes_on_and_off_and_says_so(rig: DriverRig) -> None:
    assert rig.driver.can_report_state
    for verb, power in ((PowerVerb.START, ReportedPower.ON), (PowerVerb.STOP, ReportedPower.OFF)):
        assert await press(rig, verb) is PowerCallOutcome.DONE
        assert await rig.power() is power
        assert (await query_driver(rig.driver, TIMEOUT_S)).power is power


@pytest.mark.parametrize("same", [True, False], ids=["same_call", "another_call"])
async def test_a_call_made_again_is_done(rig: DriverRig, same: bool) -> None:
    for verb, power in ((PowerVerb.STOP, ReportedPower.OFF), (PowerVerb.START, ReportedPower.ON)):
        for call_id in ("call-1", "call-1" if same else "call-2"):
            assert await press(rig, verb, call_id) is PowerCallOutcome.DONE
            assert await rig.power() is power


async def test_no_capacity_is_an_answer_of_its_own_and_passes(rig: DriverRig) -> None:
    rig.sell_out(2)
    assert [await press(rig, PowerVerb.START, f"call-{n}") for n in range(3)] == [
        PowerCallOutcome.NO_CAPACITY,
        PowerCallOutcome.NO_CAPACITY,
        PowerCallOutcome.DONE,
    ]
    assert await rig.power() is ReportedPower.ON


async def test_a_broken_switch_fails_with_a_reason_and_says_nothing_of_the_host(rig: DriverRig) -> None:
    rig.break_down()
    for verb in PowerVerb:
        answer = await call_driver(rig.driver, verb, "call-1", TIMEOUT_S)
        assert answer.outcome is PowerCallOutcome.FAILED
        assert answer.why
        assert "\n" not in answer.why
    assert (await query_driver(rig.driver, TIMEOUT_S)).power is ReportedPower.UNKNOWN


@pytest.mark.parametrize("name", CLUSTERS)
async def test_one_call_reports_the_hosts_of_a_cluster(name: str, tmp_path: Path) -> None:
    async with RIGS[name](tmp_path) as rig:
        driver = rig.driver
        assert isinstance(driver, ClusterPowerDriver)
        assert driver.cluster is not None
        for verb, power in ((PowerVerb.START, ReportedPower.ON), (PowerVerb.STOP, ReportedPower.OFF)):
            assert await press(rig, verb) is PowerCallOutcome.DONE
            assert await rig.power() is power
            reports = await query_cluster(driver, ("gpu-1", "gpu-2"), TIMEOUT_S)
            assert reports == {"gpu-1": StateReport(power), "gpu-2": StateReport(ReportedPower.OFF)}
        rig.break_down()
        reports = await query_cluster(driver, ("gpu-1", "gpu-2"), TIMEOUT_S)
        assert {report.power for report in reports.values()} == {ReportedPower.UNKNOWN}
        (why,) = {report.why for report in reports.values()}
        assert why
        assert "\n" not in why


async def test_a_call_that_is_cut_off_ends_at_once(rig: DriverRig) -> None:
    with anyio.fail_after(TIMEOUT_S):
        with anyio.CancelScope() as cut:
            cut.cancel()
            await rig.driver.start("call-1")
        assert cut.cancelled_caught
        assert await press(rig, PowerVerb.START, "call-2") is PowerCallOutcome.DONE


def test_the_port_has_no_word_for_deleting() -> None:
    words = {name for port in (PowerDriver, ClusterPowerDriver) for name in vars(port) if not name.startswith("_")}
    assert words == {"can_report_state", "start", "stop", "state", "cluster", "states"}
