"""`lamplighter relay` at a real gateway, with switches that are only pretended."""

import anyio
import pytest

from edge.power.drivers.memory import MemoryDriver
from edge.power.drivers.port import NoCapacity, SwitchFailed
from edge.power.drivers.relay import RelayAway, RelayDriver
from lamplighter.cli.relaying import Switch, Unwelcome, keep
from schemas.power import Provider
from tests.broker import until
from tests.edge.facades.gateway.conftest import Door


async def there(door: Door) -> None:
    """Wait until a relay is connected."""

    async def connected() -> bool:
        try:
            await RelayDriver(door.parts.relays, "gpu-1").state()
        except SwitchFailed as failed:
            return not isinstance(failed.__cause__, RelayAway)
        return True

    await until(connected)


async def test_it_starts_stops_and_tells(door: Door):
    machine = MemoryDriver(slow=True)
    switch = RelayDriver(door.parts.relays, "gpu-1")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keep, door.url, door.texts["relay"], {"gpu-1": Switch(machine, 5)})
        await there(door)
        assert await switch.state() is Provider.OFF
        await switch.start("call-1")
        assert await switch.state() is Provider.STARTING
        machine.settle()
        await switch.stop("call-2")
        machine.settle()
        assert await switch.state() is Provider.OFF
        assert machine.calls == [("start", "call-1"), ("stop", "call-2")]
        machine.sold_out = 1
        with pytest.raises(NoCapacity):
            await switch.start("call-3")
        machine.broken = True
        with pytest.raises(SwitchFailed, match="broken"):
            await switch.start("call-4")
        with pytest.raises(SwitchFailed, match="does not know gpu-2"):
            await RelayDriver(door.parts.relays, "gpu-2").state()
        tasks.cancel_scope.cancel()


async def test_a_switch_that_hangs_is_told(door: Door):
    class Hanging(MemoryDriver):
        async def state(self) -> Provider:
            await anyio.sleep_forever()
            raise AssertionError

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keep, door.url, door.texts["relay"], {"gpu-1": Switch(Hanging(), 0.05)})
        await there(door)
        with pytest.raises(SwitchFailed, match="did not answer"):
            await RelayDriver(door.parts.relays, "gpu-1").state()
        tasks.cancel_scope.cancel()


async def test_a_wrong_key_ends_it(door: Door):
    with pytest.raises(Unwelcome, match="scope relay"):
        await keep(door.url, "lamp_x_0123456789abcdef", {})
