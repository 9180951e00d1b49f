"""`up --public` with a certificate of the operator: it is served by edge and broker, and so is a renewed one."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Struct

from bus.server.config import TlsFiles
from edge.server.certificate import _create_certificate, _sign_certificate
from lamplighter import Client
from runner.host.enrollment import _read_peer_certificate
from schemas.credentials import decode_relay_token
from tests.e2e.test_up import LAMPLIGHTER, lamplighter, up
from tests.support.installation import ROOT
from tests.support.reserved_ports import address_of, reserve_port
from tests.support.wait import wait_for_sync

pytestmark = pytest.mark.timeout(180)
NAME = "localhost"


def write(path: Path, content: bytes) -> None:
    """Replace the file as programs that renew certificates do."""
    part = path.with_suffix(".new")
    part.write_bytes(content)
    part.replace(path)


def serial(port: int, *, broker: bool) -> int:
    return x509.load_der_x509_certificate(_read_peer_certificate(("127.0.0.1", port), greeted=broker)).serial_number


def serial_in(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem).serial_number


def signed(key: bytes) -> bytes:
    private = serialization.load_pem_private_key(key, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return _sign_certificate(private, (NAME,), datetime.now(UTC))


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    files = TlsFiles(tmp_path / "fullchain.pem", tmp_path / "privkey.pem")
    for path, content in zip(files, reversed(_create_certificate((NAME,), datetime.now(UTC))), strict=True):
        write(path, content)
    return files


@pytest.fixture
def ports() -> Iterator[tuple[int, int]]:
    with closing(reserve_port()) as tls, closing(reserve_port()) as broker:
        yield tuple(int(address_of(held).rpartition(":")[2]) for held in (tls, broker))  # type: ignore[misc]


def broker_connections(data: Path) -> set[int]:
    """Return the ids of the connections that the broker has."""
    monitor = json.loads((data / "broker.json").read_bytes())["monitor"]
    return {one["cid"] for one in httpx2.get(f"{monitor}/connz", timeout=60).json()["connections"]}


class Told:
    """What a process writes to stderr, as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self._fd = process.stderr.fileno()
        os.set_blocking(self._fd, False)
        self._text = ""

    def lines(self, event: str) -> list[str]:
        with suppress(BlockingIOError):
            self._text += os.read(self._fd, 1 << 20).decode()
        return [line for line in self._text.splitlines() if event in line]


class RunningRelay(Struct, frozen=True):
    """A `lamplighter relay` in a folder of its own, as on another machine."""

    folder: Path

    @contextmanager
    def started(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """Run it until the block ends."""
        (self.folder / "lamplighter.toml").write_text(
            '[hosts.gpu-1]\ndriver = "command"\non = ["true"]\noff = ["true"]\n'
        )
        argv = [*LAMPLIGHTER, "relay", "--log-format", "json", *words]
        environ = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(argv, cwd=self.folder, env=environ, stderr=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.terminate()


@pytest.mark.long(20)
def test_a_relay_joins_by_its_token_and_remembers_it(tmp_path: Path, ports: tuple[int, int]) -> None:
    (tls, broker), data, lan = ports, tmp_path / "data", tmp_path / "lan"
    lan.mkdir()
    words = ("--public", NAME, "--listen", "127.0.0.1", "--tls-port", tls, "--broker-port", broker, "--no-runner")
    with up(data, *map(str, words)):
        made = json.loads(lamplighter(data, "hosts", "add", "lan", "--relay", "--json").stdout)
        *command, token = made["command"].split()
        assert command == ["lamplighter", "relay", "--join"]
        relay = RunningRelay(lan)
        for joining in (("--join", token), ()):
            with relay.started(*joining) as process:
                told = Told(process)
                wait_for_sync(partial(told.lines, "relay_connected"))
                assert not told.lines("relay_connect_failed")
        kept = lan / ".lamplighter" / "relay" / "relay.json"
        assert kept.stat().st_mode & 0o777 == 0o600

        kept.write_bytes(kept.read_bytes().replace(decode_relay_token(token).edge_pin.encode(), b"0" * 64))
        with relay.started() as process:
            told = Told(process)
            line = wait_for_sync(partial(told.lines, "relay_connect_failed"))[0]
            assert "it is not the pinned one" in line
            assert "--pin sha256:" in line
        assert lamplighter(data, "keys", "revoke", made["key_id"]).returncode == 0
        with relay.started("--join", token) as process:
            assert process.wait(30) == 4
    with relay.started("--join", "nonsense") as process:
        assert process.wait(30) == 2
        assert "lamplighter hosts add --relay" in process.stderr.read()


@pytest.mark.long(25)
def test_a_renewal_is_served_by_edge_and_broker_and_breaks_no_stream(
    tmp_path: Path, files: TlsFiles, ports: tuple[int, int]
) -> None:
    (tls, broker), data, key = ports, tmp_path / "data", files.key.read_bytes()
    words = ("--public", NAME, "--listen", "127.0.0.1", "--cert", files.cert, "--key", files.key)
    more = ("--tls-port", tls, "--broker-port", broker, "--log-level", "info", "--log-format", "json")
    with up(data, *map(str, (*words, *more))) as (process, said):
        before = serial_in(files.cert.read_bytes())
        assert {serial(tls, broker=False), serial(broker, broker=True)} == {before}
        with Client(f"https://{NAME}:{tls}", said["key"], pin=str(files.cert)) as client:
            job = client.submit("echo", behave="hang")
            events: list[Any] = []
            stream = threading.Thread(target=lambda: events.extend(client.follow(job.id)))
            stream.start()
            wait_for_sync(lambda: bool(events))
            connections = broker_connections(data)

            # Half of a certificate, then another key's: the old one stays, with one line each.
            write(files.cert, signed(key)[:300])
            told = Told(process)
            assert len(wait_for_sync(lambda: told.lines("certificate_renewal_failed"))) == 1
            assert {serial(tls, broker=False), serial(broker, broker=True)} == {before}

            renewed = signed(key)
            write(files.cert, renewed)
            after = serial_in(renewed)
            assert after != before
            wait_for_sync(lambda: serial(tls, broker=False) == after, timeout_s=20)
            wait_for_sync(lambda: serial(broker, broker=True) == after, timeout_s=20)
            assert connections <= broker_connections(data), "no connection of the broker was broken"
            client.cancel(job.id)
            stream.join(30)
            assert events[-1].job.status == "cancelled"
        assert json.loads(lamplighter(data, "hosts", "add", "gpu-2", "--json").stdout)["command"]
        found = json.loads(lamplighter(data, "doctor", "--json").stdout)
        (row,) = (row for row in found if row["name"] == "certificate")
        assert (row["verdict"], "3649 days" in row["what"]) == ("ok", True), row
