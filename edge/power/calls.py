"""A call of a switch, bounded in time, with every way it can end as a value."""

import anyio
import structlog

from edge.power.drivers.port import Driver, NoCapacity, SwitchFailed
from schemas.power import Answer, Outcome, Provider, Verb

_log = structlog.get_logger()


async def call(driver: Driver, verb: Verb, call_id: str, timeout_s: float) -> Answer:
    """Have it done within `timeout_s`. A call that takes longer has failed, though it may still have its effect."""
    press = {Verb.START: driver.start, Verb.STOP: driver.stop}[verb]
    try:
        with anyio.fail_after(timeout_s):
            await press(call_id)
    except NoCapacity as error:
        return Answer(Outcome.NO_CAPACITY, str(error))
    except SwitchFailed as error:
        return Answer(Outcome.FAILED, str(error))
    except TimeoutError:
        return Answer(Outcome.FAILED, f"the switch did not answer in {timeout_s:g} s")
    except Exception as error:  # the border to programs and clouds of others: see edge.services.fenced
        _log.exception("switch_broke", verb=verb)
        return Answer(Outcome.FAILED, f"{type(error).__name__}: {error}")
    return Answer(Outcome.DONE)


async def ask(driver: Driver, timeout_s: float) -> Provider:
    """What the switch says, UNKNOWN when it says nothing in time."""
    try:
        with anyio.fail_after(timeout_s):
            return await driver.state()
    except (SwitchFailed, TimeoutError):
        return Provider.UNKNOWN
    except Exception:
        _log.exception("switch_broke", verb="state")
        return Provider.UNKNOWN
