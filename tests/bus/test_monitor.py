"""Several servers' monitors: the worst of them counts, and a deaf one costs one wait and not one a submit."""

import httpx
import pytest

from bus.monitor import DEAF_S, Monitors
from bus.port import Unreachable


class Server:
    """A monitor that can be switched off; `asked` counts."""

    def __init__(self, *, synced: bool = True, storage: int = 10) -> None:
        self.synced, self.storage, self.on, self.asked = synced, storage, True, 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        if not self.on:
            raise httpx.ConnectTimeout("nobody there", request=request)
        config = {"max_storage": 100} | ({"sync_always": True} if self.synced else {})
        return httpx.Response(200, json={"jetstream": {"config": config, "stats": {"storage": self.storage}}})


class Running:
    """A clock."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def monitors(*servers: Server, running: Running | None = None) -> Monitors:
    clients = [httpx.AsyncClient(base_url="http://n", transport=httpx.MockTransport(server)) for server in servers]
    return Monitors(clients, running or Running())


async def test_each_server_says_how_it_is():
    said = await monitors(Server(), Server(synced=False, storage=90)).ask()
    assert [(one.synced, one.used) for one in said] == [(True, 0.1), (False, 0.9)]


async def test_a_deaf_server_is_left_out_and_asked_again_later():
    running, here, away = Running(), Server(), Server()
    away.on = False
    asking = monitors(here, away, running=running)
    assert len(await asking.ask()) == 1
    assert len(await asking.ask()) == 1
    assert (here.asked, away.asked) == (2, 1)
    away.on = True
    running.now = DEAF_S
    assert len(await asking.ask()) == 2


async def test_when_the_last_one_falls_silent_all_are_asked_again():
    here, away = Server(), Server()
    away.on = False
    asking = monitors(here, away)
    await asking.ask()
    here.on, away.on = False, True
    assert len(await asking.ask()) == 1
    away.on = False
    with pytest.raises(Unreachable, match=r"broker\.monitor"):
        await asking.ask()
