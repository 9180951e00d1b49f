"""What the power law may rely on whatever switches the host: the fake, programs, a webhook, a relay, a cloud.

Wake-on-LAN has no word of its own and is tested in tests/edge/power/test_wol.py.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from edge.power.calls import ask, call
from edge.power.drivers.port import Driver
from schemas.power import Outcome, Provider, Verb
from tests.contract.switches import RIGS, Rig

TIMEOUT_S = 20.0


@pytest.fixture(params=sorted(RIGS))
async def rig(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: object) -> AsyncIterator[Rig]:
    async with RIGS[request.param](tmp_path) as made:
        yield made


async def press(rig: Rig, verb: Verb, call_id: str = "call-1") -> Outcome:
    return (await call(rig.driver, verb, call_id, TIMEOUT_S)).outcome


async def test_it_goes_on_and_off_and_says_so(rig: Rig) -> None:
    assert rig.driver.tells
    for verb, power in ((Verb.START, Provider.ON), (Verb.STOP, Provider.OFF)):
        assert await press(rig, verb) is Outcome.DONE
        assert await rig.power() is power
        assert await ask(rig.driver, TIMEOUT_S) is power


@pytest.mark.parametrize("same", [True, False], ids=["same_call", "another_call"])
async def test_a_call_made_again_is_done(rig: Rig, same: bool) -> None:
    for verb, power in ((Verb.STOP, Provider.OFF), (Verb.START, Provider.ON)):
        for call_id in ("call-1", "call-1" if same else "call-2"):
            assert await press(rig, verb, call_id) is Outcome.DONE
            assert await rig.power() is power


async def test_no_capacity_is_an_answer_of_its_own_and_passes(rig: Rig) -> None:
    rig.sell_out(2)
    assert [await press(rig, Verb.START, f"call-{n}") for n in range(3)] == [
        Outcome.NO_CAPACITY,
        Outcome.NO_CAPACITY,
        Outcome.DONE,
    ]
    assert await rig.power() is Provider.ON


async def test_a_broken_switch_fails_with_a_reason_and_says_nothing_of_the_host(rig: Rig) -> None:
    rig.break_down()
    for verb in Verb:
        answer = await call(rig.driver, verb, "call-1", TIMEOUT_S)
        assert answer.outcome is Outcome.FAILED
        assert answer.why
        assert "\n" not in answer.why
    assert await ask(rig.driver, TIMEOUT_S) is Provider.UNKNOWN


async def test_a_call_that_is_cut_off_ends_at_once(rig: Rig) -> None:
    with anyio.fail_after(TIMEOUT_S):
        with anyio.CancelScope() as cut:
            cut.cancel()
            await rig.driver.start("call-1")
        assert cut.cancelled_caught
        assert await press(rig, Verb.START, "call-2") is Outcome.DONE


def test_the_port_has_no_word_for_deleting() -> None:
    words = {name for name in vars(Driver) if not name.startswith("_")}
    assert words == {"tells", "start", "stop", "state"}
