"""An exhausted quota is reported with the vendor's "busy"."""

from edge.owners.quotas import OwnerQuotaOverride
from tests.edge.facades.heygem.conftest import OWNER, HeygemClient


async def test_who_may_have_no_more_waiting_is_told_that_it_is_busy(heygem: HeygemClient):
    heygem.world.limits[OWNER] = OwnerQuotaOverride(waiting=1)
    assert (await heygem.submit(code="one"))["code"] == 10000
    assert await heygem.submit(code="two") == {"code": 10001, "data": {}, "msg": "忙碌中", "success": True}
    assert (await heygem.submit(code="one"))["code"] == 10000
