"""Who is on the broker's list comes in, who is not does not: the same for the fake and for a real nats-server."""

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from bus.connection import open_edge, open_runner
from bus.port import Unreachable
from bus.roster import NotReloaded, Roster, new_password
from bus.settings import BrokerSettings
from edge.services.joining import Door
from tests.broker import broker, until
from tests.contract.doors import DOORS


@pytest.fixture(params=DOORS)
async def door(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Door]:
    async with DOORS[request.param](tmp_path) as made:
        yield made


async def test_exactly_those_on_the_list_come_in(door: Door):
    passwords = {"gpu-1": new_password(), "gpu-2": new_password()}
    await door.write(passwords)

    async def admitted() -> bool:
        with suppress(Unreachable):  # while it reads its list it may hang up
            return [await door.admits(*one) for one in passwords.items()] == [True, True]
        return False

    await until(admitted)
    for host, password in (("gpu-1", passwords["gpu-2"]), ("gpu-3", passwords["gpu-1"])):
        with suppress(Unreachable):
            assert not await door.admits(host, password)
    await door.write({"gpu-2": passwords["gpu-2"]})

    async def put_out() -> bool:
        with suppress(Unreachable):  # one that hangs up before it says why
            return not await door.admits("gpu-1", passwords["gpu-1"])
        return False

    await until(put_out)
    assert await door.admits("gpu-2", passwords["gpu-2"])


async def test_a_real_one_cuts_the_connection_and_spares_the_others(tmp_path: Path):
    async with broker(tmp_path) as server:
        roster = Roster(server.settings("edge"), tmp_path / "broker", server.reload)
        passwords = {"gpu-1": new_password(), "gpu-2": new_password()}
        await roster.write(passwords)
        one, two = (BrokerSettings(server.url, f"runner-{host}", passwords[host]) for host in passwords)

        async def admitted() -> bool:
            with suppress(Unreachable):
                return await roster.admits("gpu-2", passwords["gpu-2"])
            return False

        await until(admitted)
        async with open_edge(server.settings("edge")) as edge, open_runner(one) as first, open_runner(two) as second:
            since = second.link.unbroken_s()
            await roster.write({"gpu-2": passwords["gpu-2"]})

            async def cut() -> bool:
                return not first.link.connected

            await until(cut)
            assert edge.link.connected
            assert second.link.connected
            assert second.link.unbroken_s() >= since


async def test_the_list_outlives_the_broker_and_is_for_its_owner_only(tmp_path: Path):
    async with broker(tmp_path) as server:
        roster = Roster(server.settings("edge"), tmp_path / "broker", server.reload)
        password = new_password()
        await roster.write({"gpu-1": password})
        await server.kill()
        await server.start()
        assert await roster.admits("gpu-1", password)
    for name in ("users.conf", "ours.conf", "joined.conf", "nats.conf"):
        assert (tmp_path / "broker" / name).stat().st_mode & 0o077 == 0, name


@pytest.mark.parametrize(("argv", "said"), [(("false",), "exit"), (("no-such-program",), "No such file")])
async def test_a_reload_that_fails_is_said(tmp_path: Path, argv: tuple[str, ...], said: str):
    async with broker(tmp_path) as server:
        roster = Roster(server.settings("edge"), tmp_path / "broker", argv)
        with pytest.raises(NotReloaded, match=said):
            await roster.write({"gpu-1": new_password()})


async def test_a_folder_that_is_not_the_brokers_is_said(tmp_path: Path):
    roster = Roster(BrokerSettings(), tmp_path / "nowhere", ("true",))
    with pytest.raises(NotReloaded, match=r"joining\.folder"):
        await roster.write({})
