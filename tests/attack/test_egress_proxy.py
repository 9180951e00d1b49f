"""What a job tries at the proxy that is its only way out. With containers: tests/contract/engines/test_egress.py."""

import asyncio
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from runner.egress import proxy as proxy_module
from runner.egress.proxy import EgressProxy, EgressRules
from schemas.outbound_rules import Address, parse_ip_literal
from tests.support.docker_images import ROOT
from tests.support.namespaces import why_no_namespaces
from tests.support.requirements import require

SITE = "site.example"
IN_NAMESPACES = """
ip link set lo up
printf 'nameserver 127.0.0.1\\noptions timeout:1 attempts:1\\n' >"$0"
mount --bind "$0" "$(readlink -f /etc/resolv.conf)"
exec "$@"
"""
REFUSED_NAMES = {
    "chain.example": "EgressRefused: chain.example is a private address (10.0.0.7)",
    "to-metadata.example": "EgressRefused: to-metadata.example is a link-local address (169.254.169.254)",
    "v6-private.example": "EgressRefused: v6-private.example is a private address (fd00::7)",
    "v6-link.example": "EgressRefused: v6-link.example is a link-local address (fe80::7)",
    "v6-mapped.example": "EgressRefused: v6-mapped.example is an IPv4 address in IPv6 (::ffff:7f00:1)",
    "v6-loopback.example": "EgressRefused: v6-loopback.example is a loopback address (::1)",
}


def test_no_alias_and_no_ipv6_address_leads_to_a_private_one(tmp_path: Path) -> None:
    """The names are in `allow`: the owner of an allowed name does not decide what the job reaches here."""
    require(why_no_namespaces(), "REQUIRE_NETNS")
    names = [*REFUSED_NAMES, "good-chain.example", "loop.example"]
    script, python = str(tmp_path / "resolv.conf"), [sys.executable, "-m", "tests.attack.dns_of_attacker"]
    unshare = [shutil.which("unshare") or "unshare", "--net", "--mount", "sh", "-ec", IN_NAMESPACES, script]
    done = subprocess.run([*unshare, *python, *names], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told.pop("good-chain.example") == "93.184.216.34"
    assert told.pop("loop.example").startswith("gaierror: ")
    assert told == REFUSED_NAMES


class SiteRules(EgressRules):
    """The real rules, for which SITE is a public site that listens on this machine's loopback."""

    async def check(self, host: str, port: int, allow: Collection[str]) -> list[Address]:
        address = parse_ip_literal("127.0.0.1")
        assert address is not None
        return [address] if host == SITE else await super().check(host, port, allow)


class Upstream:
    """A server that keeps what each connection sent, and answers the first bytes of it."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.got.append(b"")
        index = len(self.got) - 1
        while data := await reader.read(65536):
            self.got[index] += data
            if b"\r\n\r\n" in self.got[index]:
                break
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()


@asynccontextmanager
async def run_server(host: str) -> AsyncIterator[Upstream]:
    upstream = Upstream()
    async with await asyncio.start_server(upstream.serve, host, 0) as server:
        upstream.port = server.sockets[0].getsockname()[1]
        yield upstream


@asynccontextmanager
async def run_proxy(rules: EgressRules, allow: tuple[str, ...] = ()) -> AsyncIterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    served = EgressProxy(rules).serve(listener, allow)
    try:
        yield port
    finally:
        served.close()
        await asyncio.gather(*served._connections, return_exceptions=True)
        await asyncio.to_thread(served._thread.join)


async def send(port: int, data: bytes) -> bytes:
    """Return all that the proxy answers to these bytes, until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        await writer.drain()
        async with asyncio.timeout(60):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("address", ["::1", "::ffff:127.0.0.1", "fe80::1%lo"])
async def test_a_listener_on_ipv6_loopback_is_not_reached_by_an_allowed_name(address: str) -> None:
    async def resolve(name: str, port: int) -> Sequence[str]:
        return [address]

    async with run_server("::1") as inner, run_proxy(EgressRules(resolve=resolve), ("evil.example",)) as port:
        for head in (f"GET http://evil.example:{inner.port}/ HTTP/1.1", f"CONNECT evil.example:{inner.port} HTTP/1.1"):
            assert (await send(port, f"{head}\r\n\r\n".encode())).startswith(b"HTTP/1.1 403 ")
        assert inner.got == []


async def test_a_second_request_on_one_connection_goes_nowhere() -> None:
    async with run_server("127.0.0.1") as site, run_server("127.0.0.1") as inner, run_proxy(SiteRules()) as port:
        second = f"GET http://127.0.0.1:{inner.port}/ HTTP/1.1\r\n\r\n"
        first = f"GET http://{SITE}:{site.port}/ HTTP/1.1\r\nHost: 127.0.0.1:{inner.port}\r\n"
        answers = [
            await send(port, f"{first}Connection: keep-alive\r\n\r\n{second}".encode()),
            await send(port, f"{first}Content-Length: 4\r\n\r\nbody{second}".encode()),
        ]
        assert [answer.count(b"HTTP/1.1 ") for answer in answers] == [1, 1]
        assert inner.got == []
        assert [got.count(b"GET ") for got in site.got] == [1, 1]
        assert all(f"Host: {SITE}:{site.port}\r\n".encode() in got for got in site.got)


LONG = ".".join(["a" * 60] * 5)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET / HTTP/1.0", 400),
        ("GET /x HTTP/1.0\r\nHost: 127.0.0.1:{inner}", 400),
        ("GET http:///x HTTP/1.1\r\nHost: 127.0.0.1:{inner}", 400),
        ("GET http://127.0.0.1:{inner}@site.example/ HTTP/1.1", 400),
        ("CONNECT site.example@127.0.0.1:{inner} HTTP/1.1", 403),
        ("CONNECT user:word@127.0.0.1:{inner} HTTP/1.1", 400),
        ("CONNECT 127.0.0.1:{inner}:443 HTTP/1.1", 400),
        ("CONNECT http://127.0.0.1:{inner} HTTP/1.1", 400),
        ("CONNECT 127.0.0.1:{inner}/ HTTP/1.1", 400),
        ("CONNECT 127.0.0.1:+{inner} HTTP/1.1", 400),
        ("CONNECT 127.0.0.1:-1 HTTP/1.1", 400),
        ("CONNECT 127.0.0.1:0x16 HTTP/1.1", 400),
        ("CONNECT 127.0.0.1:131094 HTTP/1.1", 400),
        ("CONNECT 127.0.0.1:22 HTTP/1.1", 403),
        ("CONNECT 127.0.0.1:25 HTTP/1.1", 403),
        ("CONNECT 10.0.0.1:25 HTTP/1.1", 403),
        ("CONNECT [::1]:22 HTTP/1.1", 403),
        (f"CONNECT {LONG}.example:443 HTTP/1.1", 403),
        (f"GET http://{LONG}.example/ HTTP/1.1", 403),
        (f"CONNECT {'a' * 60_000}:443 HTTP/1.1", 403),
        ("CONNECT 127.0.0.1%00.site.example:{inner} HTTP/1.1", 403),
        ("CONNECT site.example\t127.0.0.1:{inner} HTTP/1.1", 403),
    ],
)
async def test_tricks_in_the_head_reach_nothing(head: str, status: int) -> None:
    async with run_server("127.0.0.1") as inner, run_proxy(EgressRules()) as port:
        answer = await send(port, head.format(inner=inner.port).encode() + b"\r\n\r\n")
        line = answer.partition(b"\r\n")[0].decode("ascii")  # has the reason: clients show no body of a refused CONNECT
        assert line.startswith(f"HTTP/1.1 {status} lamplighter: "), line
        assert line.isprintable()
        assert len(answer) < 1000
        assert inner.got == []


async def test_a_request_of_http_1_0_without_a_host_is_served_by_its_url() -> None:
    async with run_server("127.0.0.1") as site, run_proxy(SiteRules()) as port:
        answer = await send(port, f"GET http://{SITE}:{site.port}/a HTTP/1.0\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert site.got[0].startswith(f"GET /a HTTP/1.1\r\nHost: {SITE}:{site.port}\r\n".encode())


@pytest.mark.parametrize(
    "sent", [b"GET http://site.example/ HTTP/1.1\r\nX: ", b"", b"CONNECT site.example:443 HTTP/1.1"]
)
async def test_a_head_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(proxy_module, "HEAD_TIMEOUT_S", 0.1)
    async with run_proxy(SiteRules()) as port:
        assert await send(port, sent) == b""


async def test_a_head_that_is_too_long_is_given_up_at_once() -> None:
    async with run_proxy(SiteRules()) as port:
        assert await send(port, b"GET http://site.example/ HTTP/1.1\r\nX: " + b"a" * 300_000) == b""


async def test_a_job_has_so_many_connections_and_gets_others_when_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_module, "CONNECTION_LIMIT", 3)
    async with run_server("127.0.0.1") as site, run_proxy(SiteRules()) as port, run_proxy(SiteRules()) as other:
        request = f"GET http://{SITE}:{site.port}/ HTTP/1.1\r\n\r\n".encode()
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        assert await send(port, request) == b""
        assert (await send(other, request)).startswith(b"HTTP/1.1 200 "), "that of another job"
        for _, writer in held:
            writer.close()
        async with asyncio.timeout(60):
            while not (await send(port, request)).startswith(b"HTTP/1.1 200 "):
                pass
