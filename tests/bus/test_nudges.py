"""A word on a runner's own subject that is none of ours."""

from bus.connection import open_runner
from bus.port import Bus
from schemas.job import JobKey
from tests.broker import Broker, until
from tests.bus.gathering import gathering
from tests.bus.raw import raw


async def test_what_names_no_job_is_passed_over(server: Broker, edge: Bus):
    async with (
        open_runner(server.settings("runner")) as runner,
        gathering(runner.control.nudges("gpu-1")) as nudges,
        raw(server) as other,
    ):

        async def heard() -> bool:
            for rubbish in (b"\x00rubbish", b'["me"]', b'["me", "\xff"]'):
                await other.client.publish("ctl.gpu-1", rubbish)
            await edge.control.nudge("gpu-1", JobKey("me", "one"))
            return bool(nudges.items)

        await until(heard)
    assert set(nudges.items) == {JobKey("me", "one")}
