"""A second machine joins over TLS with one command, works from behind a firewall, and is removed at once.

`lamplighter up` runs in one network namespace, `lamplighter runner --join` in the other.
"""

import json
import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import Struct
from msgspec.structs import replace

from bus.interface import BrokerDenied
from bus.open import open_runner
from bus.settings import BrokerSettings
from schemas.credentials import decode_join_token, encode_join_token
from schemas.host import HostHeartbeat
from tests.e2e.test_up import lamplighter, up
from tests.support.bus_samples import NOW
from tests.support.bytecode import BYTECODE_ENVIRON
from tests.support.command import joined_runner
from tests.support.namespaces import EDGE, HOST, HostNetwork, host_network

pytestmark = pytest.mark.timeout(180)
ENDED_S = 30.0


@pytest.fixture(scope="module")
def net() -> Iterator[HostNetwork]:
    with host_network() as made, pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # else every command here compiles all that it imports
        for name, value in BYTECODE_ENVIRON.items():
            patch.setenv(name, value)
        yield made


class Home(Struct, frozen=True):
    """An `up` that others may join: its data folder and what it printed."""

    data: Path
    url: str

    def add(self, host: str) -> str:
        """Return the token that `hosts add` prints."""
        said = lamplighter(self.data, "hosts", "add", host)
        assert said.returncode == 0, said.stderr
        command, option, token = said.stdout.split()[1:]
        assert (command, option, len(said.stdout.splitlines())) == ("runner", "--join", 1)
        return token

    def broker(self, token: str) -> BrokerSettings:
        """Return how the host of `token` reaches the broker."""
        asked = decode_join_token(token)
        return BrokerSettings(asked.broker, asked.user, asked.password, pin=str(self.data / "tls" / "cert.pem"))


@pytest.fixture(scope="module")
def home(net: HostNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    data = tmp_path_factory.mktemp("home") / "data"
    with up(data, "--no-runner", "--public", EDGE, "--listen", EDGE) as (_, said):
        yield Home(data, said["url"])


def refused(process: subprocess.Popen[str]) -> str:
    """Return the one line with which the process ended."""
    _, said = process.communicate(timeout=ENDED_S)
    lines = [line for line in said.splitlines() if line.startswith("lamplighter: ")]
    assert (process.returncode, len(lines)) == (4, 1), said
    return lines[0]


def echoed(home: Home, tmp_path: Path, text: str) -> None:
    """Run a job with an input file and an output file on the host that has joined."""
    file, out = tmp_path / "in.bin", tmp_path / "out"
    file.write_bytes(os.urandom(3 << 20))
    done = lamplighter(home.data, "submit", "echo", "--text", text, "--file", file, "-o", out, "--json")
    job = json.loads(done.stdout)
    assert (job["status"], job["output"]["data"]["text"]) == ("succeeded", text), done.stderr
    (saved,) = [path for path in (out.rglob("*") if out.is_dir() else [out]) if path.is_file()]
    assert saved.read_bytes() == file.read_bytes()


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def connects(host: str, port: int) -> None:
    with socket.create_connection((host, port), timeout=1):
        """That it was let in is all."""


def test_it_joins_works_comes_back_by_itself_and_is_put_out_at_once(
    net: HostNetwork, home: Home, tmp_path: Path
) -> None:
    with pytest.raises(TimeoutError):  # no connection reaches the host from outside
        connects(HOST, 80)
    with pytest.raises(ConnectionRefusedError):  # private ports listen on loopback only
        connects(EDGE, int(home.url.rsplit(":", 1)[1]))
    token, data = home.add("gpu-1"), tmp_path / "host"
    with joined_runner(data, "--join", token, prefix=net.at_host):
        echoed(home, tmp_path, "by its token")
    assert {mode(data / name) for name in ("joined.json", "edge.pem", "broker.pem")} == {0o600}
    assert mode(home.data / "tls" / "key.pem") == 0o600
    with joined_runner(data, prefix=net.at_host) as process:
        echoed(home, tmp_path, "by what it kept")
        said = lamplighter(home.data, "hosts", "remove", "gpu-1")
        assert said.returncode == 0, said.stderr
        assert "host gpu-1 removed; revoked: its key for files, its broker account" in said.stdout
        assert json.loads(lamplighter(home.data, "hosts", "list", "--json").stdout) == []
        assert "gpu-1 was removed" in refused(process)
    with joined_runner(tmp_path / "again", "--join", token, prefix=net.at_host) as process:
        assert "gpu-1 was removed" in refused(process)


def test_it_speaks_to_nobody_whose_certificate_was_not_named(net: HostNetwork, home: Home, tmp_path: Path) -> None:
    asked = decode_join_token(home.add("gpu-2"))
    for pins in ({"edge_pin": "0" * 64}, {"broker_pin": "f" * 64}):
        with joined_runner(
            tmp_path / "host", "--join", encode_join_token(replace(asked, **pins)), prefix=net.at_host
        ) as process:
            assert "the token names" in refused(process)
    assert not (tmp_path / "host" / "joined.json").exists()


async def test_a_host_speaks_for_itself_alone(home: Home) -> None:
    token, other = home.add("gpu-3"), home.add("gpu-4")
    here = HostHeartbeat(host="gpu-4", incarnation="a", at=NOW, since=NOW)
    async with open_runner(home.broker(token)) as bus, open_runner(home.broker(other)) as neighbour:
        await neighbour.heartbeats.put("gpu-4", here)
        with pytest.raises(BrokerDenied):
            await bus.heartbeats.put("gpu-4", here)
        with pytest.raises(BrokerDenied, match=r"ctl\.gpu-4"):
            await anext(aiter(bus.host_nudges.subscribe("gpu-4")))
        with pytest.raises(BrokerDenied):
            await bus.enrolled_hosts.get("gpu-4")
        assert lamplighter(home.data, "hosts", "remove", "gpu-3").returncode == 0
        assert neighbour.health.is_connected  # the other host keeps its connection
    with pytest.raises(BrokerDenied, match="user or password"):
        async with open_runner(home.broker(token)):
            raise AssertionError("it was let in")


def test_a_host_joins_once_and_only_who_joined_is_removed(home: Home) -> None:
    home.add("gpu-5")
    for words, code in ((("add", "gpu-5"), "enrolled already"), (("remove", "gpu-6"), "is not enrolled")):
        said = lamplighter(home.data, "hosts", *words)
        assert said.returncode == 4
        assert code in said.stderr


def test_many_join_with_one_token_work_and_leave_nothing_behind(net: HostNetwork, home: Home, tmp_path: Path) -> None:
    words = ("--uses", "2", "--ttl", "1h", "--prefix", "pilot", "--token-only")
    said = lamplighter(home.data, "hosts", "token", *words)
    assert said.returncode == 0, said.stderr
    file = tmp_path / "token"
    file.write_text(said.stdout)
    until_idle = ("--until-idle", "3")
    with (
        joined_runner(tmp_path / "one", "--join", f"@{file}", *until_idle, prefix=net.at_host) as one,
        joined_runner(tmp_path / "two", "--join", f"@{file}", *until_idle, prefix=net.at_host) as two,
    ):
        echoed(home, tmp_path, "by a shared token")
        for process in (one, two):
            _, ended = process.communicate(timeout=ENDED_S)
            assert process.returncode == 0, ended
    for data in ("one", "two"):
        assert not (tmp_path / data / "joined.json").exists()
    with joined_runner(tmp_path / "three", "--join", f"@{file}", *until_idle, prefix=net.at_host) as process:
        assert "2 hosts have joined with the join token" in refused(process)
    (token,) = json.loads(lamplighter(home.data, "hosts", "token", "list", "--json").stdout)
    assert (token["state"], token["used"], token["hosts"]) == ("used_up", 2, 0)
    assert not [host for host in json.loads(lamplighter(home.data, "hosts", "--json").stdout) if "pilot" in host["id"]]
    assert "HOST_pilot" not in "".join(path.read_text() for path in home.data.rglob("hosts.conf"))
    revoked = lamplighter(home.data, "hosts", "token", "revoke", token["id"])
    assert (revoked.returncode, revoked.stdout) == (0, f"join token {token['id']} revoked\n")


def test_what_is_no_token_is_said_to_be_none(net: HostNetwork, tmp_path: Path) -> None:
    with joined_runner(tmp_path, "--join", "nonsense", prefix=net.at_host) as process:
        _, said = process.communicate(timeout=ENDED_S)
    assert process.returncode == 2
    assert "not a join token" in said
