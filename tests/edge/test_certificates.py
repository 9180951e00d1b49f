"""The certificate that the edge creates, and hosts that pin it."""

import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from socket import create_connection, create_server

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from structlog.testing import capture_logs

from bus.interface import BrokerUnreachable
from bus.server.config import TlsFiles
from edge.process import advertised_addresses, public_certificate
from edge.server.certificate import (
    CertificateUnusable,
    ServedCertificate,
    _sign_certificate,
    check_key_pair,
    is_trusted_here,
    load_or_create_certificate,
)
from edge.settings import EdgeSettings, EnrollmentSettings, PublicSettings
from runner.host.enrollment import CertificateMismatch, fetch_certificate
from schemas.certificates import first_certificate, parse_pins, pinned_context, read_certificate

NAMES = ("gpu.example.com", "192.0.2.7", "2001:db8::7")


def made(folder: Path) -> TlsFiles:
    return load_or_create_certificate(folder, NAMES, datetime.now(UTC))


def fingerprint(pem: str) -> str:
    return read_certificate(first_certificate(pem)).sha256


def renewed(key: bytes) -> bytes:
    """Return another certificate for the key, as PEM."""
    private = serialization.load_pem_private_key(key, password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return _sign_certificate(private, NAMES, datetime.now(UTC))


@contextmanager
def answering(tls: TlsFiles | None, greeting: bytes = b"") -> Iterator[int]:
    """Serve a port that sends a greeting over TLS and closes, for every connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if tls:
        context.load_cert_chain(*tls)
    with create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    plain, _ = listening.accept()
                except OSError:
                    return
                with plain:
                    plain.sendall(greeting)
                    if tls:
                        try:
                            context.wrap_socket(plain, server_side=True).close()
                        except OSError:
                            continue  # whoever trusts another certificate hangs up

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(2)
            thread.join()


def test_it_is_made_once_for_its_names_and_its_key_is_its_owners(tmp_path: Path):
    tls = made(tmp_path / "tls")
    certificate = x509.load_pem_x509_certificate(tls.cert.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(name.value) for name in names} == set(NAMES)
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert tls.key.stat().st_mode & 0o077 == 0
    before = tls.cert.read_bytes()
    assert made(tmp_path / "tls").cert.read_bytes() == before


@pytest.mark.parametrize(
    ("cert", "key", "said"),
    [
        (
            "absent.pem",
            "key.pem",
            "public.cert DIR/absent.pem cannot be read (No such file or directory): correct cert",
        ),
        ("cert.pem", "absent.pem", "public.key DIR/absent.pem cannot be read (No such file or directory): correct"),
        ("bytes.pem", "key.pem", "public.cert DIR/bytes.pem cannot be read (it is not PEM text): correct cert and key"),
        (
            "text.pem",
            "key.pem",
            "public.cert DIR/text.pem and public.key DIR/key.pem are not a certificate and its key",
        ),
        ("cert.pem", "other/key.pem", "as PEM (KEY_VALUES_MISMATCH): correct cert and key in [public]"),
        (
            "cert.pem",
            "locked.pem",
            "as PEM (the key is encrypted with a password: store it without one): correct cert and key in [public]",
        ),
    ],
)
def test_an_unusable_certificate_is_named(tmp_path: Path, cert: str, key: str, said: str):
    tls = made(tmp_path)
    made(tmp_path / "other")
    (tmp_path / "bytes.pem").write_bytes(b"\xff")
    (tmp_path / "text.pem").write_text("no certificate")
    locked = load_pem_private_key(tls.key.read_bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    (tmp_path / "locked.pem").write_bytes(locked)
    settings = EdgeSettings(public=PublicSettings(cert=tmp_path / cert, key=tmp_path / key))
    with pytest.raises(CertificateUnusable, match=re.escape(said.replace("DIR", str(tmp_path)))):
        public_certificate(settings, datetime.now(UTC))


def test_a_created_certificate_that_was_damaged_is_named(tmp_path: Path):
    settings = EdgeSettings(data=tmp_path, public=PublicSettings(listen="127.0.0.1:0", names=NAMES))
    tls = public_certificate(settings, datetime.now(UTC))
    assert tls is not None
    tls.key.write_text("")
    with pytest.raises(CertificateUnusable, match="restore both files, or delete both for a new certificate"):
        public_certificate(settings, datetime.now(UTC))


def test_an_unusable_certificate_of_the_broker_is_named(tmp_path: Path):
    (tmp_path / "broker.pem").write_text("no certificate")
    settings = EdgeSettings(
        public=PublicSettings(
            url="https://gpu.example.com", broker="tls://gpu.example.com:4222", broker_cert=tmp_path / "broker.pem"
        ),
        enrollment=EnrollmentSettings(nats_conf_dir=tmp_path),
    )
    with pytest.raises(
        CertificateUnusable, match=r"public\.broker_cert .* is not a certificate as PEM: correct broker_cert"
    ):
        advertised_addresses(settings, None)


@pytest.mark.parametrize(("scheme", "greeting"), [("https", b""), ("tls", b'INFO {"tls_required":true}\r\n')])
def test_whoever_answers_must_have_the_certificate_that_was_named(tmp_path: Path, scheme: str, greeting: bytes):
    tls = made(tmp_path)
    pin = fingerprint(tls.cert.read_text())
    with answering(tls, greeting) as port:
        assert fingerprint(fetch_certificate(f"{scheme}://127.0.0.1:{port}", pin)) == pin
        with pytest.raises(CertificateMismatch, match="the token names 0000000000000000"):
            fetch_certificate(f"{scheme}://127.0.0.1:{port}", "0" * 64)


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
@pytest.mark.parametrize("scheme", ["https", "tls"])
def test_who_does_not_speak_tls_is_not_reached(scheme: str, greeting: bytes):
    with answering(None, greeting) as port, pytest.raises(BrokerUnreachable, match="does not answer with TLS"):
        fetch_certificate(f"{scheme}://127.0.0.1:{port}", "0" * 64)


def test_a_pin_trusts_that_certificate_and_no_other(tmp_path: Path):
    ours, theirs = made(tmp_path / "ours"), made(tmp_path / "theirs")
    context = pinned_context(parse_pins(str(ours.cert)))
    with (
        answering(ours) as port,
        create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="any.name") as secured,
    ):
        assert secured.version() == "TLSv1.3"
    with (
        answering(theirs) as port,
        create_connection(("127.0.0.1", port)) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        context.wrap_socket(plain, server_hostname="any.name")


def test_a_pin_names_the_public_key_so_a_renewal_that_keeps_it_is_trusted(tmp_path: Path):
    ours = made(tmp_path)
    pin = str(tmp_path / "before.pem")
    Path(pin).write_bytes(ours.cert.read_bytes())
    ours.cert.write_bytes(renewed(ours.key.read_bytes()))
    assert fingerprint(ours.cert.read_text()) != fingerprint(Path(pin).read_text())
    with (
        answering(ours) as port,
        create_connection(("127.0.0.1", port)) as plain,
        pinned_context(parse_pins(pin)).wrap_socket(plain, server_hostname="any.name") as secured,
    ):
        assert secured.version() == "TLSv1.3"


def test_a_pinned_key_is_kept_over_a_renewal_and_another_one_is_not_served(tmp_path: Path):
    files = made(tmp_path / "tls")
    served = ServedCertificate(files, pinned=True)
    assert not served.reload_if_changed()
    files.cert.write_bytes(renewed(files.key.read_bytes()))
    assert served.reload_if_changed()
    kept, others = served.context, made(tmp_path / "others")
    with capture_logs() as said:
        others.cert.replace(files.cert)
        others.key.replace(files.key)
        assert not served.reload_if_changed()
    assert served.context is kept
    assert [(line["event"], "another public key" in line["error"]) for line in said] == [
        ("certificate_reload_failed", True)
    ]


@pytest.mark.parametrize(("name", "trusted"), [("gpu.example.com", True), ("192.0.2.7", True), ("elsewhere", False)])
def test_whether_hosts_can_verify_it_without_a_pin_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, trusted: bool
):
    ours = made(tmp_path)
    context = check_key_pair(ours, "cert", "key", "correct it")
    assert not is_trusted_here(context, name)
    monkeypatch.setenv("SSL_CERT_FILE", str(ours.cert))
    assert is_trusted_here(context, name) == trusted
