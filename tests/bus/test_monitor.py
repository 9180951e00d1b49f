"""Several servers' monitors: the worst of them counts, and a deaf one costs one wait and not one a submit."""

import httpx2
import pytest

from bus.interface import BrokerUnreachable
from bus.nats.health import MONITOR_RETRY_BACKOFF_S, MonitorClients, describe_degradation, has_lost_write_quorum


class MonitoredServer:
    """A monitor that can be switched off; `asked` counts."""

    def __init__(self, *, synced: bool = True, storage: int = 10, complaint: str = "") -> None:
        self.synced, self.storage, self.complaint, self.on, self.asked = synced, storage, complaint, True, 0

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked += request.url.path == "/varz"
        if not self.on:
            raise httpx2.ConnectTimeout("nobody there", request=request)
        if request.url.path == "/healthz":
            errors = [{"type": "STREAM", "error": self.complaint}] if self.complaint else []
            return httpx2.Response(503 if errors else 200, json={"status": "ok", "errors": errors})
        config = {"max_storage": 100} | ({"sync_always": True} if self.synced else {})
        said = {"config": config, "stats": {"storage": self.storage}}
        return httpx2.Response(200, json={"server_name": "n", "jetstream": said})


class MonitorSample:
    """A clock."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def monitors(*servers: MonitoredServer, running: MonitorSample | None = None) -> MonitorClients:
    clients = [httpx2.AsyncClient(base_url="http://n", transport=httpx2.MockTransport(server)) for server in servers]
    return MonitorClients(clients, running or MonitorSample())


async def test_each_server_says_how_it_is():
    said = await monitors(MonitoredServer(), MonitoredServer(synced=False, storage=90)).fetch_all()
    assert [(one.is_durable, one.used_share) for one in said] == [(True, 0.1), (False, 0.9)]


async def test_a_deaf_server_is_left_out_and_asked_again_later():
    running, here, away = MonitorSample(), MonitoredServer(), MonitoredServer()
    away.on = False
    asking = monitors(here, away, running=running)
    assert len(await asking.fetch_all()) == 1
    assert len(await asking.fetch_all()) == 1
    assert (here.asked, away.asked) == (2, 1)
    away.on = True
    running.now = MONITOR_RETRY_BACKOFF_S
    assert len(await asking.fetch_all()) == 2


async def test_when_the_last_one_falls_silent_all_are_asked_again():
    here, away = MonitoredServer(), MonitoredServer()
    away.on = False
    asking = monitors(here, away)
    await asking.fetch_all()
    here.on, away.on = False, True
    assert len(await asking.fetch_all()) == 1
    away.on = False
    with pytest.raises(BrokerUnreachable, match=r"broker\.monitor"):
        await asking.fetch_all()


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
    said = await monitors(*(MonitoredServer(complaint=complaint) for complaint in complaints)).fetch_all()
    assert has_lost_write_quorum(said) is halted


async def test_of_three_with_one_away_and_one_full_nothing_is_stored():
    away = MonitoredServer()
    away.on = False
    assert has_lost_write_quorum(await monitors(MonitoredServer(), MonitoredServer(complaint=FULL), away).fetch_all())


async def test_who_is_ill_while_the_others_work_is_reported_with_what_to_do():
    away = MonitoredServer()
    away.on = False
    asking = monitors(MonitoredServer(), MonitoredServer(complaint=FULL), MonitoredServer(), MonitoredServer(), away)
    full, silent = describe_degradation(await asking.fetch_all(), len(asking))
    assert full.startswith("server n of the broker could not write")
    assert full.endswith(": make room on that disk, then restart that nats-server")
    assert silent == "1 of the broker's 5 servers do not answer at their monitors: restart them"
