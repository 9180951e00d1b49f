"""A word on a runner's own subject that is none of ours."""

from bus.interface import Bus
from bus.open import open_runner
from schemas.job import JobKey
from tests.support.nats_broker import BrokerProcess
from tests.support.raw_nats import connect_raw
from tests.support.stream_collector import collect_stream
from tests.support.wait import wait_for


async def test_what_names_no_job_is_passed_over(server: BrokerProcess, edge: Bus):
    async with (
        open_runner(server.settings("runner")) as runner,
        collect_stream(runner.host_nudges.subscribe("gpu-1")) as nudges,
        connect_raw(server) as other,
    ):

        async def heard() -> bool:
            for rubbish in (b"\x00rubbish", b'["me"]', b'["me", "\xff"]'):
                await other.client.publish("ctl.gpu-1", rubbish)
            await edge.host_nudges.nudge("gpu-1", JobKey("me", "one"))
            return bool(nudges.items)

        await wait_for(heard)
    assert set(nudges.items) == {JobKey("me", "one")}
