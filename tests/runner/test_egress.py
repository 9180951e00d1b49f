"""The proxy of jobs without a container engine: heads of requests, names, ClientHellos. Real ones: test_egress.py of
tests/contract/engines.
"""

import json
import ssl
from collections.abc import Sequence
from pathlib import Path

import pytest

from runner.egress.proxy import (
    EgressProxy,
    EgressRefused,
    EgressRules,
    ProxyRequest,
    RequestInvalid,
    ServerNameReader,
    is_allowed,
    parse_request,
)
from runner.engines.port import ContainerIdentity, ContainerLimits, ContainerSpec
from runner.engines.process import ProcessEngine
from runner.engines.selection import JOBKIT_DIR
from schemas.endpoint import EndpointInvalid, parse_endpoint
from schemas.endpoint_parts import EgressPolicy

HEAD = 'name = "x"\nimage = "x"\n'


def head(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.parametrize(
    ("lines", "request_"),
    [
        (["CONNECT a.b:443 HTTP/1.1"], ProxyRequest("CONNECT", "a.b", 443, "", (), 0)),
        (["CONNECT [::1]:443 HTTP/1.1"], ProxyRequest("CONNECT", "[::1]", 443, "", (), 0)),
        (["GET http://a.b HTTP/1.1"], ProxyRequest("GET", "a.b", 80, "/", (), 0)),
        (["GET http://a.b?c#d HTTP/1.0"], ProxyRequest("GET", "a.b", 80, "/?c", (), 0)),
        (
            ["POST http://a.b:81/c HTTP/1.1", "Host: evil", "Content-Length: 3"],
            ProxyRequest("POST", "a.b", 81, "/c", (("host", "evil"), ("content-length", "3")), 3),
        ),
    ],
)
def test_requests_to_a_proxy_are_read(lines: list[str], request_: ProxyRequest) -> None:
    assert parse_request(head(*lines)) == request_


@pytest.mark.parametrize(
    "lines",
    [
        ["GET /path HTTP/1.1", "Host: a.b"],
        ["GET https://a.b/ HTTP/1.1"],
        ["GET ftp://a.b/ HTTP/1.1"],
        ["GET http://user:word@a.b/ HTTP/1.1"],
        ["GET http://[::1/ HTTP/1.1"],
        ["GET http://a.b:0/ HTTP/1.1"],
        ["GET http://a.b:65536/ HTTP/1.1"],
        ["GET http://a.b/ HTTP/2"],
        ["GET  http://a.b/ HTTP/1.1"],
        ["GET http://a.b/\tHTTP/1.1"],
        ["CONNECT a.b HTTP/1.1"],
        ["CONNECT ::1:443 HTTP/1.1"],
        ["CONNECT :443 HTTP/1.1"],
        ["POST http://a.b/ HTTP/1.1", "Transfer-Encoding: chunked"],
        ["POST http://a.b/ HTTP/1.1", "Content-Length: 1", "Content-Length: 2"],
        ["POST http://a.b/ HTTP/1.1", "Content-Length: +1"],
        ["GET http://a.b/ HTTP/1.1", "no header"],
        ["GET http://a.b/ HTTP/1.1", " folded: line"],
        ["GET http://a.b/ HTTP/1.1", "a: b\nc: d"],
        ["GET http://a.b/ä HTTP/1.1"],
        [""],
    ],
)
def test_what_is_no_request_to_a_proxy_is_refused(lines: list[str]) -> None:
    with pytest.raises(RequestInvalid):
        parse_request(head(*lines))


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("huggingface.co", True),
        ("cdn.example.com", True),
        ("a.b.example.com", True),
        ("example.com", False),
        ("xexample.com", False),
        ("www.huggingface.co", False),
        ("huggingface.co.evil.net", False),
    ],
)
def test_an_allow_list_names_hosts_and_all_below_one(name: str, allowed: bool) -> None:
    assert is_allowed(name, ("HuggingFace.co", "*.example.com")) is allowed


async def test_a_name_without_an_address_is_an_error_and_one_that_is_no_name_is_refused() -> None:
    async def resolve(name: str, port: int) -> Sequence[str]:
        return []

    rules = EgressRules(resolve=resolve)
    with pytest.raises(OSError, match=r"gone\.example has no address"):
        await rules.check("gone.example", 80, ())
    for host in ("a b", "a/b", "-a.example", "a..b", "", "x" * 254, "a.1"):
        with pytest.raises(EgressRefused):
            await rules.check(host, 80, ())


def client_hello(name: str | None) -> bytes:
    context, sent = ssl.create_default_context(), ssl.MemoryBIO()
    context.check_hostname = name is not None
    client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


@pytest.mark.parametrize("piece_bytes", [1, 7, 10_000])
def test_the_server_name_is_read_however_it_arrives(piece_bytes: int) -> None:
    hello, reader = client_hello("site.example"), ServerNameReader()
    for start in range(0, len(hello), piece_bytes):
        assert not reader.is_done
        reader.feed(hello[start : start + piece_bytes])
    assert (reader.name, reader.is_done) == ("site.example", True)


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", b"\x16\x03\x01\x00\x05hello", bytes(100)]
)
def test_what_is_no_client_hello_has_no_name(data: bytes) -> None:
    reader = ServerNameReader()
    reader.feed(data)
    assert reader.name is None


def test_a_client_hello_may_name_no_server() -> None:
    reader = ServerNameReader()
    reader.feed(client_hello(None))
    assert (reader.name, reader.is_done) == (None, True)


def test_networks_are_read_and_none_is_the_default() -> None:
    assert parse_endpoint(HEAD).egress is None
    assert parse_endpoint(f'{HEAD}network = "egress"').egress == EgressPolicy()
    allow = '\nallow = ["huggingface.co", "*.example.com"]'
    assert parse_endpoint(f'{HEAD}network = "egress"{allow}').egress == EgressPolicy(
        ("huggingface.co", "*.example.com")
    )


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ('network = "bridge"', 'network is "bridge": it must be egress or none'),
        (
            'network = "egress"\nallow = ["10.0.0.1"]',
            'allow[0] is "10.0.0.1": it must be a host name, or all names below',
        ),
        ('network = "egress"\nallow = ["*"]', 'allow[0] is "*": it must be a host name'),
        ('network = "egress"\nallow = ["https://a.b"]', 'allow[0] is "https://a.b": it must be a host name'),
        ('network = "egress"\nallow = "a.b"', 'allow is "a.b": it must be a list, each item a host name'),
        ('allow = ["a.b"]', 'allow needs a network: set network = "egress", or remove allow'),
        (
            'network = "egress"\nruntime = "runsc"',
            'network = "egress" needs the runtime runc: remove runtime = "runsc"',
        ),
    ],
)
def test_a_wrong_network_is_refused_with_what_is_allowed(lines: str, error: str) -> None:
    with pytest.raises(EndpointInvalid) as refused:
        parse_endpoint(HEAD + lines)
    assert error in str(refused.value)


FETCH = """
import json, sys, urllib.request, urllib.error
try:
    urllib.request.urlopen("http://169.254.169.254/", timeout=30)
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, error.read().decode()]))
"""


async def test_a_plain_process_finds_the_proxy_too(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    spec = ContainerSpec(
        identity=ContainerIdentity(installation="i", host="h", owner="ann", job="j"),
        image="x",
        folder=str(tmp_path / "image"),
        command=("python3", "-c", FETCH),
        job_dir=tmp_path / "j" / "job",
        limits=ContainerLimits(256, 1.0),
        egress=EgressPolicy(),
    )
    async with ProcessEngine(tmp_path / "state", JOBKIT_DIR, proxy=EgressProxy()) as engine:
        handle = await engine.start(spec)
        output = b"".join([chunk.data async for chunk in engine.output(handle, None)])
        await engine.remove(handle)
    code, text = json.loads(output)
    assert (code, text) == (403, "lamplighter: 169.254.169.254 is a link-local address (169.254.169.254)\n")
