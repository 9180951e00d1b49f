"""Three brokers on loopback that are one, each with a port of its own; any of them can be killed."""

import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import anyio.to_thread
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

from bus.interface import BusError
from bus.open import open_for_backup
from bus.server.config import ClusterConfig, ServerConfig, TlsFiles, render_accounts, render_config
from bus.server.process import find_program
from bus.settings import BrokerSettings
from tests.support.reserved_ports import reserve_ports
from tests.support.wait import wait_for

NAMES = ("n1", "n2", "n3")
LIFETIME = timedelta(days=1)
PASSWORDS = {"edge": "of-the-edge", "runner": "of-the-runner"}
FORM_TIMEOUT_S = 60.0


class TrioTls(NamedTuple):
    """The certificate of all three for clients and routes, and the authority that signed it."""

    files: TlsFiles
    ca: Path


def make_trio_tls(folder: Path) -> TrioTls:
    """Make an authority, and a certificate for 127.0.0.1 with which a broker is both server and client of a route."""
    folder.mkdir()
    tls = TrioTls(TlsFiles(folder / "cert.pem", folder / "key.pem"), folder / "ca.pem")
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("authority", "authority", authority.public_key(), (x509.BasicConstraints(True, 0),), authority)
    uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    own = _certificate("broker", "authority", key.public_key(), (uses, names), authority)
    tls.ca.write_bytes(ca.public_bytes(Encoding.PEM))
    tls.files.cert.write_bytes(own.public_bytes(Encoding.PEM))
    tls.files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return tls


def _certificate(
    subject: str,
    issuer: str,
    public_key: ec.EllipticCurvePublicKey,
    extensions: Sequence[x509.ExtensionType],
    signer: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    now = datetime.now(UTC)
    subject_name, issuer_name = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in (subject, issuer)
    )
    builder = x509.CertificateBuilder(issuer_name, subject_name, public_key, x509.random_serial_number())
    builder = builder.not_valid_before(now - LIFETIME).not_valid_after(now + LIFETIME)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    return builder.sign(signer, hashes.SHA256())


class BrokerTrio(Struct, frozen=True):
    """`settings`: how the edge reaches all three, which keep their data over `kill` and `start`."""

    folder: Path
    settings: BrokerSettings
    running: dict[str, subprocess.Popen[bytes]]

    def start(self, name: str) -> None:
        """It finds the others by itself. Blocking."""
        argv = [find_program(), "--config", str(self.folder / name / "nats.conf")]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(argv, stdout=log, stderr=log)

    async def kill(self, name: str) -> None:
        """SIGKILL."""
        await self._end(name, signal.SIGKILL)

    async def stop(self, name: str) -> None:
        """In good order."""
        await self._end(name, signal.SIGTERM)

    async def _end(self, name: str, how: signal.Signals) -> None:
        process = self.running.pop(name)
        process.send_signal(how)
        await anyio.to_thread.run_sync(process.wait)


def _addresses(folder: Path, ports: Sequence[int], tls: TrioTls | None) -> dict[str, ServerConfig]:
    """`ports`: three of each, for clients, for monitors and for routes. `tls`: for clients and routes."""
    files = tls and tls.files
    places = tuple(f"127.0.0.1:{port}" for port in ports)
    clients, monitors, routes = places[0::3], places[1::3], places[2::3]
    return {
        name: ServerConfig(
            clients[number],
            monitors[number],
            str(folder / name / "jetstream"),
            ("accounts.conf", "hosts.conf"),
            tls=files,
            cluster=ClusterConfig(name, routes[number], routes, "between-us", tls=files, ca=tls and tls.ca),
        )
        for number, name in enumerate(NAMES)
    }


def _write_config(home: Path, place: ServerConfig) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / "accounts.conf").write_text(render_accounts(PASSWORDS))
    (home / "hosts.conf").touch()
    (home / "nats.conf").write_text(render_config(place))


@asynccontextmanager
async def run_broker_trio(folder: Path, *, tls: TrioTls | None = None) -> AsyncIterator[BrokerTrio]:
    """Nothing is in them yet; they have found each other. `tls`: for the routes, and for their clients."""
    with reserve_ports(3 * len(NAMES)) as ports:
        async with _start_trio(folder, _addresses(folder, ports, tls)) as made:
            yield made


@asynccontextmanager
async def _start_trio(folder: Path, places: dict[str, ServerConfig]) -> AsyncIterator[BrokerTrio]:
    tls = next(iter(places.values())).tls
    settings = BrokerSettings(
        url=",".join(f"{'tls' if tls else 'nats'}://{place.listen}" for place in places.values()),
        pin=str(tls.cert) if tls else None,
        user="edge",
        password=PASSWORDS["edge"],
        monitor=",".join(f"http://{place.monitor}" for place in places.values()),
    )
    made = BrokerTrio(folder, settings, {})
    try:
        for name, place in places.items():
            _write_config(folder / name, place)
            made.start(name)
        await wait_for(_is_formed(settings), timeout_s=FORM_TIMEOUT_S)
        yield made
    finally:
        for name in list(made.running):
            await made.kill(name)


def _is_formed(settings: BrokerSettings):
    async def formed() -> bool:
        try:
            async with open_for_backup(settings) as (_, snapshots):
                return await snapshots.message_counts() == {}
        except BusError:
            return False

    return formed
