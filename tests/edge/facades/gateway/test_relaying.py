"""`lamplighter relay` with a real gateway and fake power drivers."""

from pathlib import Path

import anyio
import pytest

from edge.power.drivers.generic import RelayDriver, RelayUnavailable
from lamplighter.cli.health import MAX_AGE_S, fault_of_file
from lamplighter.cli.relay import RelayedHost, RelayKeyRejected, serve_edge
from runner.host.health_file import HealthFile
from schemas.power import NoCapacity, PowerCallFailed, ReportedPower
from tests.edge.facades.gateway.conftest import GatewayEdge
from tests.support.fake_power_driver import FakePowerDriver
from tests.support.wait import wait_for


async def there(gateway: GatewayEdge) -> None:
    """Wait until a relay is connected."""

    async def connected() -> bool:
        try:
            await RelayDriver(gateway.services.relay_hub, "gpu-1").state()
        except PowerCallFailed as failed:
            return not isinstance(failed.__cause__, RelayUnavailable)
        return True

    await wait_for(connected)


async def test_it_starts_stops_and_tells(gateway: GatewayEdge):
    machine = FakePowerDriver(slow=True)
    switch = RelayDriver(gateway.services.relay_hub, "gpu-1")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve_edge, gateway.url, gateway.texts["relay"], {"gpu-1": RelayedHost(machine, 5)})
        await there(gateway)
        assert await switch.state() is ReportedPower.OFF
        await switch.start("call-1")
        assert await switch.state() is ReportedPower.STARTING
        machine.finish_transition()
        await switch.stop("call-2")
        machine.finish_transition()
        assert await switch.state() is ReportedPower.OFF
        assert machine.calls == [("start", "call-1"), ("stop", "call-2")]
        machine.sold_out = 1
        with pytest.raises(NoCapacity):
            await switch.start("call-3")
        machine.broken = True
        with pytest.raises(PowerCallFailed, match="broken"):
            await switch.start("call-4")
        with pytest.raises(PowerCallFailed, match="does not know gpu-2"):
            await RelayDriver(gateway.services.relay_hub, "gpu-2").state()
        tasks.cancel_scope.cancel()


async def test_a_switch_that_hangs_is_reported(gateway: GatewayEdge):
    class Hanging(FakePowerDriver):
        async def state(self) -> ReportedPower:
            await anyio.sleep_forever()
            raise AssertionError

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve_edge, gateway.url, gateway.texts["relay"], {"gpu-1": RelayedHost(Hanging(), 0.05)})
        await there(gateway)
        with pytest.raises(PowerCallFailed, match="did not answer"):
            await RelayDriver(gateway.services.relay_hub, "gpu-1").state()
        tasks.cancel_scope.cancel()


async def test_a_wrong_key_ends_it(gateway: GatewayEdge):
    with pytest.raises(RelayKeyRejected, match="hosts add --relay"):
        await serve_edge(gateway.url, "lamp_x_0123456789abcdef", {})


async def test_a_connected_relay_renews_its_health_file(gateway: GatewayEdge, tmp_path: Path):
    file = tmp_path / "health"
    assert "not connected" in (fault_of_file(file) or "")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve_edge, gateway.url, gateway.texts["relay"], {}, lambda: None, HealthFile(file))
        await wait_for(anyio.Path(file).exists)
        tasks.cancel_scope.cancel()
    renewed_at = file.stat().st_mtime
    assert fault_of_file(file, renewed_at + MAX_AGE_S) is None
    assert "was last renewed 31 s ago" in (fault_of_file(file, renewed_at + MAX_AGE_S + 1) or "")


async def test_a_health_file_that_cannot_be_written_is_logged(tmp_path: Path):
    await HealthFile(tmp_path / "missing" / "health").renew()
    assert not (tmp_path / "missing").exists()
    assert "health_file is not set" in (fault_of_file(None) or "")
