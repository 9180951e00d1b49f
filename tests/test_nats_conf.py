"""nats.conf in a real nats-server: it is accepted, syncs every write, and gives each user the rights written here."""

import json
import os
import re
import socket
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client

from bus.server.config import LOGIN_TIMEOUT_S, render_accounts
from tests.support.reserved_ports import reserve_ports

ROOT = Path(__file__).parent.parent
SERVER = ROOT / ".venv/bin/nats-server"
PASSWORDS = {f"LAMPLIGHTER_{user.upper()}_PASSWORD": f"pass-{user}" for user in ("edge", "runner", "reader")}


@pytest.fixture(scope="module")
def ports() -> Iterator[list[int]]:
    with reserve_ports(2) as held:
        yield held


@pytest.fixture(scope="module")
def broker(ports: list[int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """The ports of a server that runs this nats.conf, for clients and for its monitor."""
    client, monitor = ports
    text = (ROOT / "nats.conf").read_text()
    conf = tmp_path_factory.mktemp("broker") / "nats.conf"
    conf.write_text(text.replace(":4222", f":{client}").replace(":8222", f":{monitor}"))
    argv = [SERVER, "-c", conf]
    with subprocess.Popen(
        argv, cwd=conf.parent, env={**os.environ, **PASSWORDS}, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        for line in server.stderr:
            if "Server is ready" in line:
                break
        else:
            raise AssertionError(f"nats-server ended with {server.wait()}")
        yield client, monitor
        server.terminate()
        server.stderr.read()


@asynccontextmanager
async def connected(port: int, user: str) -> AsyncIterator[tuple[Client, list[str]]]:
    """A connection of that user, and the violations that the server has told it of."""
    told: list[str] = []

    async def note(error: Exception) -> None:
        told.append(str(error))

    client = await nats.connect(
        f"nats://127.0.0.1:{port}", user=user, password=f"pass-{user}", error_cb=note, inbox_prefix=f"_INBOX_{user}"
    )
    try:
        yield client, told
    finally:
        await client.close()


async def settled(client: Client) -> None:
    """Until the server has judged all that was sent. Twice: nats-py's ping overtakes what still waits to be written."""
    await client.flush()
    await client.flush()


def test_the_server_accepts_it_only_with_all_passwords():
    argv = [SERVER, "-t", "-c", ROOT / "nats.conf"]
    bare = {name: value for name, value in os.environ.items() if name not in PASSWORDS}
    assert subprocess.run(argv, env={**bare, **PASSWORDS}, check=False, capture_output=True).returncode == 0
    for missing in PASSWORDS:
        some = {name: value for name, value in PASSWORDS.items() if name != missing}
        refused = subprocess.run(argv, env={**bare, **some}, check=False, capture_output=True, text=True)
        assert refused.returncode == 1
        assert missing in refused.stderr


def test_it_gives_the_rights_that_bus_gives():
    """`lamplighter up` makes its own file from bus/server/config.py: two texts, one law."""
    text = re.sub(r"#.*", "", (ROOT / "nats.conf").read_text())
    ours = render_accounts({user: f"$LAMPLIGHTER_{user.upper()}_PASSWORD" for user in ("edge", "runner", "reader")})
    assert text[text.index("accounts {") :].split() == ["accounts", "{", *ours.split(), "}"]


def test_every_acknowledged_write_is_synced(broker: tuple[int, int]):
    with urllib.request.urlopen(f"http://127.0.0.1:{broker[1]}/varz", timeout=60) as answer:
        varz = json.load(answer)
    assert varz["jetstream"]["config"]["sync_always"] is True
    assert varz["max_payload"] == 2 * 1024 * 1024
    assert varz["host"] == "127.0.0.1"
    assert varz["auth_timeout"] == LOGIN_TIMEOUT_S


PUBLISHES = [
    ("edge", "$JS.API.STREAM.CREATE.KV_STATE", True),
    ("edge", "job.echo.normal.me.one.1", True),
    ("runner", "$JS.API.CONSUMER.MSG.NEXT.JOBS.gpu-high", True),
    ("runner", "$JS.ACK.JOBS.gpu-high.1.2.3.4.5", True),
    ("runner", "$JS.API.STREAM.INFO.KV_STATE", True),
    ("runner", "$JS.API.STREAM.MSG.GET.KV_STATE", True),
    ("runner", "$KV.STATE.me.one", True),
    ("runner", "$JS.API.STREAM.INFO.KV_HOSTS", True),
    ("runner", "$JS.API.STREAM.INFO.KV_TOMBSTONES", True),
    ("runner", "$JS.API.DIRECT.GET.KV_HOSTS.$KV.HOSTS.gpu-1", True),
    ("runner", "$JS.API.DIRECT.GET.KV_TOMBSTONES.$KV.TOMBSTONES.ab", True),
    ("runner", "$JS.API.STREAM.INFO.KV_POWER", True),
    ("runner", "$JS.API.DIRECT.GET.KV_POWER.$KV.POWER.gpu-1", True),
    ("runner", "$KV.POWER.gpu-1", False),
    ("runner", "feed.me.one.progress", True),
    ("runner", "feed.me.one.log", True),
    ("runner", "$KV.HOSTS.gpu-1", True),
    ("runner", "$KV.OFFERS.gpu-1", True),
    ("runner", "feed.me.one.state", False),  # only STATE makes states
    ("runner", "job.echo.high.me.one.1", False),
    ("runner", "$JS.API.STREAM.CREATE.X", False),
    ("runner", "$JS.API.STREAM.UPDATE.KV_STATE", False),
    ("runner", "$JS.API.STREAM.PURGE.KV_STATE", False),
    ("runner", "$JS.API.STREAM.DELETE.KV_STATE", False),
    ("runner", "$JS.API.CONSUMER.CREATE.JOBS.x", False),
    ("runner", "$KV.KEYS.x", False),
    ("runner", "$KV.TOMBSTONES.ab", False),
    ("runner", "$JS.API.DIRECT.GET.KV_TOMBSTONES.$KV.PAUSES.endpoint.echo", True),
    ("runner", "$KV.PAUSES.endpoint.echo", False),
    ("runner", "$JS.API.DIRECT.GET.KV_TOMBSTONES.$KV.DELETED_OWNERS.ann", True),
    ("runner", "$KV.DELETED_OWNERS.ann", False),
    ("runner", "$JS.API.DIRECT.GET.KV_KEYS.x", False),
    ("runner", "$JS.API.STREAM.MSG.GET.KV_KEYS", False),
    ("runner", "ctl.gpu-2", False),
    ("reader", "$JS.API.STREAM.INFO.FEED", True),
    ("reader", "$JS.API.CONSUMER.CREATE.FEED.mine", True),
    ("reader", "$JS.API.CONSUMER.MSG.NEXT.FEED.mine", True),
    ("reader", "$JS.API.CONSUMER.DELETE.FEED.mine", True),
    ("reader", "$JS.ACK.FEED.mine.1.2.3.4.5", True),
    ("reader", "feed.me.one.log", False),
    ("reader", "$JS.API.CONSUMER.CREATE.JOBS.mine", False),
    ("reader", "$JS.FC.FEED.mine", False),
    ("reader", "readers.CONSUMER.CREATE.JOBS.mine", False),
    ("reader", "$JS.API.STREAM.MSG.GET.KV_STATE", False),
]
SUBSCRIBES = [
    ("runner", "_INBOX_runner.a.b", True),
    ("runner", "ctl.gpu-1", True),
    ("runner", "wake.echo", True),
    ("runner", "_INBOX.>", False),  # answers to others
    ("runner", "$KV.KEYS.>", False),
    ("runner", "feed.>", False),
    ("reader", "_INBOX_reader.a", True),
    ("reader", "feed.>", False),
    ("reader", "job.>", False),
]


@pytest.mark.parametrize("user", ["edge", "runner", "reader"])
async def test_each_user_may_publish_what_the_design_says_and_no_more(broker: tuple[int, int], user: str):
    subjects = {subject: allowed for name, subject, allowed in PUBLISHES if name == user}
    async with connected(broker[0], user) as (client, told):
        for subject in subjects:
            await client.publish(subject, b"")
        await settled(client)
    assert denied(told) == {subject.lower() for subject, allowed in subjects.items() if not allowed}


@pytest.mark.parametrize("user", ["runner", "reader"])
async def test_each_user_may_subscribe_to_what_the_design_says_and_no_more(broker: tuple[int, int], user: str):
    subjects = {subject: allowed for name, subject, allowed in SUBSCRIBES if name == user}
    async with connected(broker[0], user) as (client, told):
        for subject in subjects:
            await client.subscribe(subject)
        await settled(client)
    assert denied(told) == {subject.lower() for subject, allowed in subjects.items() if not allowed}


def denied(told: list[str]) -> set[str]:
    """The subjects in `Permissions Violation for Publish to "x"`; nats-py gives the text in lower case."""
    return {
        match[1].lower()
        for text in told
        if (match := re.search(r'permissions violation for \w+ to "(.+?)"', text.lower()))
    }


def test_nobody_comes_in_without_a_password(broker: tuple[int, int]):
    with socket.create_connection(("127.0.0.1", broker[0]), timeout=60) as wire, wire.makefile("rwb") as lines:
        assert lines.readline().startswith(b"INFO ")
        lines.write(b'CONNECT {"verbose":true}\r\n')
        lines.flush()
        assert lines.readline() == b"-ERR 'Authorization Violation'\r\n"
