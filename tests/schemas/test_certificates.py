"""What is read out of a certificate, compared with the library `cryptography`, and how pins are spelled."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from schemas.certificates import (
    CertificateUnreadable,
    PinInvalid,
    authority_context,
    first_certificate,
    parse_pins,
    read_certificate,
)

NAMES = [
    (NameOID.COUNTRY_NAME, "DE"),
    (NameOID.ORGANIZATION_NAME, "灯塔 Ltd"),
    (NameOID.COMMON_NAME, "gpu.example.com\x1b[2J"),
]
SHOWN = "C=DE, O=灯塔 Ltd, CN=gpu.example.com?[2J"


@pytest.fixture(
    params=[ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)], ids=["ec", "rsa"]
)
def certificate(request: pytest.FixtureRequest) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(*pair) for pair in NAMES])
    now = datetime(2049, 6, 1, tzinfo=UTC)  # so that one of the dates is a UTCTime and the other a GeneralizedTime
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(x509.Name([]))
        .public_key(request.param.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=900))
        .sign(request.param, hashes.SHA256())
    )


def test_it_reads_what_the_library_reads(certificate: x509.Certificate):
    der = certificate.public_bytes(serialization.Encoding.DER)
    read = read_certificate(der)
    key = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key)
    assert (read.subject, read.issuer) == (SHOWN, "without a name")
    assert read.not_after == certificate.not_valid_after_utc
    assert read.sha256 == certificate.fingerprint(hashes.SHA256()).hex()
    assert read.key_sha256 == digest.finalize().hex()
    assert str(read) == (f"subject {SHOWN}, issuer without a name, SHA-256 {read.sha256}, expires 2051-11-18 00:00 UTC")


def test_damaged_bytes_are_not_a_certificate(certificate: x509.Certificate):
    der = certificate.public_bytes(serialization.Encoding.DER)
    for damaged in (b"", b"\x30", der[:100], der[:-1], b"\x30\x00", b"\x02\x01\x05", b"\xff" * 50):
        with pytest.raises(CertificateUnreadable):
            read_certificate(damaged)


def test_a_key_and_a_chain_may_stand_beside_the_first_certificate(certificate: x509.Certificate):
    pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
    other = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    assert first_certificate(f"a comment\n{pem}{other}") == ssl.PEM_cert_to_DER_cert(pem)
    for text in ("", "-----BEGIN CERTIFICATE-----\n", "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"):
        with pytest.raises(CertificateUnreadable):
            first_certificate(text)


def test_pins_are_spelled_as_programs_write_them(certificate: x509.Certificate, tmp_path: Path):
    digest, other = "0123456789abcdef" * 4, "f" * 64
    colons = ":".join(digest[at : at + 2] for at in range(0, 64, 2)).upper()
    for text in (f"sha256:{digest}", digest, f"SHA256:{colons}", colons):
        assert parse_pins(text) == {digest}
    assert parse_pins(f"sha256:{digest}, sha256:{other}") == {digest, other}
    file = tmp_path / "cert.pem"
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    assert parse_pins(str(file)) == {read_certificate(certificate.public_bytes(serialization.Encoding.DER)).key_sha256}


@pytest.mark.parametrize("text", ["sha256:12", f"sha256:{'g' * 64}", f"{'a' * 64},cert.pem", "", "nowhere.pem"])
def test_what_is_no_pin_is_refused_by_its_text(text: str):
    with pytest.raises(PinInvalid, match="the pin"):
        parse_pins(text)


def test_a_missing_file_of_authorities_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError) as error:
        authority_context(str(tmp_path / "ca.pem"))
    assert error.value.filename == str(tmp_path / "ca.pem")
