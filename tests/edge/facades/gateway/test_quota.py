"""An exhausted quota on the gateway."""

from edge.owners.quotas import OwnerQuotaOverride
from tests.edge.facades.gateway.conftest import GatewayEdge


async def test_what_may_not_wait_is_an_error_and_what_was_accepted_is_answered_again(gateway: GatewayEdge):
    gateway.world.limits["ann"] = OwnerQuotaOverride(waiting=1)
    async with gateway.connect() as desk:
        first = await desk.ask("gpu.job.submit", {"text": "a"}, task_type="echo", request_id="r1")
        refused = await desk.ask("gpu.job.submit", {"text": "b"}, task_type="echo", request_id="r2")
        again = await desk.ask("gpu.job.submit", {"text": "a"}, task_type="echo", request_id="r1")
    assert (refused["type"], refused["result"]["error"]["code"]) == ("error", "quota_exceeded")
    assert refused["result"]["error"]["retry_after_s"] > 0
    assert refused["error_msg"]
    assert again["payload"]["job_id"] == first["payload"]["job_id"]
