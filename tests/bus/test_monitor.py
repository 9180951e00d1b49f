"""Several servers' monitors: the worst of them counts, and a deaf one costs one wait and not one a submit."""

import httpx
import pytest

from bus.monitor import DEAF_S, Monitors, ailing, outvoted
from bus.port import Unreachable


class Server:
    """A monitor that can be switched off; `asked` counts."""

    def __init__(self, *, synced: bool = True, storage: int = 10, complaint: str = "") -> None:
        self.synced, self.storage, self.complaint, self.on, self.asked = synced, storage, complaint, True, 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked += request.url.path == "/varz"
        if not self.on:
            raise httpx.ConnectTimeout("nobody there", request=request)
        if request.url.path == "/healthz":
            errors = [{"type": "STREAM", "error": self.complaint}] if self.complaint else []
            return httpx.Response(503 if errors else 200, json={"status": "ok", "errors": errors})
        config = {"max_storage": 100} | ({"sync_always": True} if self.synced else {})
        said = {"config": config, "stats": {"storage": self.storage}}
        return httpx.Response(200, json={"server_name": "n", "jetstream": said})


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


FULL = "JetStream stream '$G > KV_STATE' write error: write 1.blk: no space left on device"
ELSE = "JetStream stream '$G > KV_STATE' is not current: stream catching up"


@pytest.mark.parametrize(
    ("complaints", "halted"),
    [
        (("",), False),
        ((ELSE,), False),
        ((FULL,), True),
        (("jetstream not enabled",), True),
        ((FULL, "", ""), False),
        ((FULL, FULL, ""), True),
    ],
)
async def test_what_stopped_writing_stores_nothing_once_it_is_no_minority(complaints: tuple[str, ...], halted: bool):
    said = await monitors(*(Server(complaint=complaint) for complaint in complaints)).ask()
    assert outvoted(said) is halted


async def test_of_three_with_one_away_and_one_full_nothing_is_stored():
    away = Server()
    away.on = False
    assert outvoted(await monitors(Server(), Server(complaint=FULL), away).ask())


async def test_who_is_ill_while_the_others_work_is_told_with_what_to_do():
    away = Server()
    away.on = False
    asking = monitors(Server(), Server(complaint=FULL), Server(), Server(), away)
    full, silent = ailing(await asking.ask(), len(asking))
    assert full.startswith("server n of the broker could not write")
    assert full.endswith(": make room on that disk, then restart that nats-server")
    assert silent == "1 of the broker's 5 servers do not answer at their monitors: start them anew"
