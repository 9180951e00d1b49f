"""Clients of an edge with a certificate that nobody's machine trusts: `ca`, `pin`, and what is said without them."""

import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from msgspec import Struct
from starlette.types import Receive, Scope, Send

from bus.server.config import TlsFiles
from edge.server.certificate import load_or_create_certificate
from lamplighter import AsyncClient, Client, TrustInvalid, Unreachable, api
from lamplighter.cli import main
from lamplighter.follow import Event, FollowState
from tests.support.http_server import serve_app

LIVE = b'{"jobs":[],"hosts":[],"endpoints":[]}'


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    # The commands of the command line leave their connections to the end of the process.
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": LIVE})


class TlsEdge(Struct, frozen=True):
    """A server with a certificate of its own. `pin`: of its public key; `fingerprint`: of the certificate."""

    url: str
    cert: Path
    pin: str
    fingerprint: str


@pytest.fixture(scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory, anyio_backend: object) -> AsyncIterator[TlsEdge]:
    files = load_or_create_certificate(tmp_path_factory.mktemp("tls"), ("127.0.0.1",), datetime.now(UTC))
    async with serve_app(_answer, ssl_certfile=str(files.cert), ssl_keyfile=str(files.key)) as url:
        yield TlsEdge(url.replace("http:", "https:"), files.cert, *digests(files))


def digests(files: TlsFiles) -> tuple[str, str]:
    certificate = x509.load_pem_x509_certificate(files.cert.read_bytes())
    der, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    key, whole = certificate.public_key().public_bytes(der, form), certificate.public_bytes(der)
    return f"sha256:{hashlib.sha256(key).hexdigest()}", hashlib.sha256(whole).hexdigest()


async def asked(blocking: bool, *given: Any, **trust: Any) -> Any:
    if blocking:
        with Client(*given, **trust) as client:
            return await anyio.to_thread.run_sync(client.call, api.get_json("/v1/jobs"))
    async with AsyncClient(*given, **trust) as other:
        return await other.call(api.get_json("/v1/jobs"))


@pytest.fixture(params=[True, False], ids=["blocking", "awaiting"])
def blocking(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def test_an_edge_is_trusted_by_its_key_its_certificate_and_its_file(edge: TlsEdge, blocking: bool):
    for trust in (
        {"pin": edge.pin},
        {"pin": f"sha256:{edge.fingerprint}"},
        {"pin": f"sha256:{'0' * 64},{edge.pin}"},
        {"pin": str(edge.cert)},
        {"ca": str(edge.cert)},
    ):
        assert await asked(blocking, edge.url, **trust) == {"jobs": [], "hosts": [], "endpoints": []}


async def test_a_pin_holds_under_any_name_and_a_file_under_its_names_alone(edge: TlsEdge, blocking: bool):
    elsewhere = edge.url.replace("127.0.0.1", "localhost")
    assert await asked(blocking, elsewhere, pin=edge.pin)
    with pytest.raises(Unreachable, match=r"not trusted \(Hostname mismatch"):
        await asked(blocking, elsewhere, ca=str(edge.cert))


async def test_the_error_names_the_certificate_and_what_to_pass(edge: TlsEdge, blocking: bool):
    for trust, why in (({}, "self-signed certificate"), ({"pin": f"sha256:{'0' * 64}"}, "it is not the pinned one")):
        with pytest.raises(Unreachable) as error:
            await asked(blocking, edge.url, **trust)
        text = str(error.value)
        assert text.startswith(f"{edge.url} shows a certificate that is not trusted ({why}): subject CN=lamplighter")
        assert f"issuer CN=lamplighter, SHA-256 {edge.fingerprint}, expires 203" in text
        assert f"pass --pin {edge.pin} (its public key), or --ca FILE" in text
        assert "\n" not in text


async def first_event(blocking: bool, url: str) -> Event:
    if blocking:
        with Client(url) as client:
            return await anyio.to_thread.run_sync(lambda: next(client._stream_events("a", FollowState(None))))
    async with AsyncClient(url) as other:
        return await anext(other._stream_events("a", FollowState(None)))


async def test_a_stream_says_so_too(edge: TlsEdge, blocking: bool):
    with pytest.raises(Unreachable, match="not trusted"):
        await first_event(blocking, edge.url)


@pytest.mark.parametrize(
    ("trust", "why"),
    [
        ({"pin": "sha256:12"}, "the pin 'sha256:12' is not sha256: with 64 hex digits"),
        ({"ca": "nowhere.pem"}, "the file nowhere.pem cannot be used for ca (No such file or directory)"),
        ({"ca": __file__}, "cannot be used for ca"),
        ({"ca": "a", "pin": "b"}, "both ca and pin are given"),
    ],
)
async def test_what_cannot_be_used_is_refused_before_anything_is_sent(
    edge: TlsEdge, blocking: bool, trust: dict[str, str], why: str
):
    with pytest.raises(TrustInvalid) as error:
        await asked(blocking, edge.url, **trust)
    assert why in str(error.value)


def test_a_pin_for_an_address_without_tls_is_refused_except_on_this_machine():
    with pytest.raises(TrustInvalid, match=r"http://edge\.example\.com is not encrypted"):
        Client("http://edge.example.com", pin=f"sha256:{'0' * 64}")
    Client("http://127.0.0.1:8000", pin=f"sha256:{'0' * 64}").close()


async def run(*words: str, **environ: str) -> Result:
    return await anyio.to_thread.run_sync(lambda: CliRunner().invoke(main, [*words], env=environ))


async def test_the_command_line_takes_both_as_options_and_variables(edge: TlsEdge):
    refused = await run("jobs", "--url", edge.url)
    assert refused.exit_code == 3
    (line,) = refused.stderr.strip().splitlines()
    assert line.startswith(f"lamplighter: {edge.url} shows a certificate that is not trusted")
    pin = line.partition("--pin ")[2].split()[0]
    for words, environ in (
        (("--pin", pin), {}),
        (("--ca", str(edge.cert)), {}),
        ((), {"LAMPLIGHTER_PIN": pin}),
        ((), {"LAMPLIGHTER_CA": str(edge.cert)}),
        (("--pin", pin), {"LAMPLIGHTER_CA": "nowhere.pem"}),
    ):
        done = await run("hosts", "--url", edge.url, *words, **environ)
        assert done.exit_code == 0, done.stderr
    wrong = await run("jobs", "--url", edge.url, "--pin", "sha256:12")
    assert (wrong.exit_code, len(wrong.stderr.strip().splitlines())) == (2, 1)
