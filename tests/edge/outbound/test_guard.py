"""Requests to URLs that clients name, attacked by servers and by DNS."""

import gzip
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import anyio
import anyio.abc
import httpx2
import pytest
from anyio.streams.tls import TLSListener

from edge.outbound import (
    AllowList,
    DownloadFailed,
    PerOwnerLimiter,
    SsrfGuardTransport,
    UrlRefused,
    download,
    guarded_client,
    resolve_host,
)
from edge.server.certificate import load_or_create_certificate
from tests.support.scripted_servers import (
    FakeDns,
    ServerScript,
    http_redirect,
    http_response,
    scripted_server,
    send_bytes,
    send_endless_body,
)

PUBLIC = "93.184.215.14"
LOCAL = "127.0.0.1"


async def fetched(asked: httpx2.AsyncClient, url: str) -> bytes:
    async with download(asked, url) as file:
        return b"".join([chunk async for chunk in file.chunks])


@asynccontextmanager
async def site(play: ServerScript) -> AsyncIterator[tuple[httpx2.AsyncClient, str]]:
    """Yield a guarded client that may reach files.test, which resolves to this machine, and a URL on it."""
    async with scripted_server(play) as server:
        names = FakeDns(files_test=[[LOCAL]])
        async with guarded_client(AllowList([f"files.test:{server.port}"]), names) as asked:
            yield asked, f"http://files.test:{server.port}/a%20film.mp4"


class Recorder(httpx2.AsyncBaseTransport):
    """A transport that records the addresses of requests; `dead` addresses do not answer."""

    def __init__(self, dead: Sequence[str] = ()) -> None:
        self.went: list[httpx2.Request] = []
        self.is_closed = False
        self._dead = dead

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.went.append(request)
        if request.url.host in self._dead:
            raise httpx2.ConnectError("nobody there")
        return httpx2.Response(200, content=b"")

    async def aclose(self) -> None:
        self.is_closed = True


async def test_a_file_comes_with_its_name_and_type() -> None:
    async with site(http_response(b"a film")) as (asked, url), download(asked, url) as file:
        assert (file.name, file.media_type, file.length) == ("a film.mp4", "video/mp4", 6)
        assert b"".join([chunk async for chunk in file.chunks]) == b"a film"


async def test_a_url_without_a_name_gives_a_file_of_that_name() -> None:
    async with site(http_response()) as (asked, url), download(asked, str(httpx2.URL(url).copy_with(path="/"))) as file:
        assert file.name == "file"


async def test_the_request_goes_to_the_address_and_names_the_host() -> None:
    recorder = Recorder()
    async with httpx2.AsyncClient(
        transport=SsrfGuardTransport(AllowList(), FakeDns(films_test=[[PUBLIC]]), recorder)
    ) as asked:
        await asked.get("https://films.test:444/a?b=c")
    (went,) = recorder.went
    assert str(went.url) == f"https://{PUBLIC}:444/a?b=c"
    assert went.headers["host"] == "films.test:444"
    assert went.extensions["sni_hostname"] == "films.test"
    assert recorder.is_closed


async def test_tls_asks_for_the_name_and_not_the_address() -> None:
    hello: list[bytes] = []

    async def listen(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            hello.append(await stream.receive())

    async with await anyio.create_tcp_listener(local_host=LOCAL) as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, listen)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with guarded_client(AllowList(["films.test"]), FakeDns(films_test=[[LOCAL]])) as asked:
            with pytest.raises(httpx2.TransportError):
                await asked.get(f"https://films.test:{port}/")
        tasks.cancel_scope.cancel()
    assert b"films.test" in hello[0]


async def test_only_a_certificate_that_is_trusted_is_accepted(tmp_path: Path) -> None:
    files = load_or_create_certificate(tmp_path, ("films.test",), datetime.now(UTC))
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(*files)
    trusting = ssl.create_default_context(cafile=files.cert)

    async def answer(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            await stream.receive()
            await http_response(b"a film")(stream)

    async with await anyio.create_tcp_listener(local_host=LOCAL) as plain, anyio.create_task_group() as tasks:
        url = f"https://films.test:{plain.extra(anyio.abc.SocketAttribute.local_port)}/"
        tasks.start_soon(TLSListener(plain, serving, standard_compatible=False).serve, answer)
        allowed, names = AllowList(["films.test"]), FakeDns(films_test=[[LOCAL]])
        async with guarded_client(allowed, names) as asked:
            with pytest.raises(DownloadFailed, match="certificate"):
                await fetched(asked, url)
        async with guarded_client(allowed, names, trusting) as asked:
            assert await fetched(asked, url) == b"a film"
        tasks.cancel_scope.cancel()


async def test_dns_that_changes_its_answer_is_asked_once_a_request() -> None:
    names = FakeDns(rebind_test=[[PUBLIC], [LOCAL]])
    recorder = Recorder()
    async with (
        scripted_server(http_response()) as server,
        httpx2.AsyncClient(transport=SsrfGuardTransport(AllowList(), names, recorder)) as asked,
    ):
        await asked.get(f"http://rebind.test:{server.port}/")
        assert [request.url.host for request in recorder.went] == [PUBLIC]
        assert names.asked == ["rebind.test"]
        with pytest.raises(UrlRefused, match="loopback"):
            await asked.get(f"http://rebind.test:{server.port}/")
        assert server.requests == []


@pytest.mark.parametrize(
    "answers",
    [[LOCAL], ["::1"], [PUBLIC, LOCAL], [LOCAL, PUBLIC], ["169.254.169.254"], ["::ffff:127.0.0.1"], ["64:ff9b::a00:1"]],
)
async def test_a_name_that_stands_for_a_refused_address_is_refused(answers: list[str]) -> None:
    recorder = Recorder()
    async with httpx2.AsyncClient(
        transport=SsrfGuardTransport(AllowList(), FakeDns(evil_test=[answers]), recorder)
    ) as asked:
        with pytest.raises(UrlRefused, match=r"evil\.test"):
            await asked.get("http://evil.test/")
    assert recorder.went == []


@pytest.mark.parametrize("host", ["localhost", "localhost.", "LOCALHOST"])
async def test_the_machines_own_names_are_no_way_in(host: str) -> None:
    async with scripted_server(http_response()) as server, guarded_client(AllowList(), resolve_host) as asked:
        with pytest.raises(UrlRefused):
            await fetched(asked, f"http://{host}:{server.port}/")
        assert server.requests == []


async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    recorder = Recorder(dead=[PUBLIC])
    names = FakeDns(films_test=[[PUBLIC, "1.1.1.1"]])
    async with httpx2.AsyncClient(transport=SsrfGuardTransport(AllowList(), names, recorder)) as asked:
        assert (await asked.get("http://films.test/")).status_code == 200
    assert [request.url.host for request in recorder.went] == [PUBLIC, "1.1.1.1"]


async def test_a_name_that_nobody_knows_may_be_known_later() -> None:
    async with guarded_client(AllowList(), FakeDns()) as asked:
        with pytest.raises(DownloadFailed, match="resolved") as failed:
            await fetched(asked, "http://nowhere.test/")
    assert failed.value.is_transient


@pytest.mark.parametrize("host", ["127.0.0.1", "evil.test", "2130706433", "[::1]"])
async def test_a_redirect_inwards_is_refused_and_never_asked(host: str) -> None:
    async with (
        scripted_server(http_response(b"secret")) as inside,
        scripted_server(http_redirect(f"http://{host}:{inside.port}/")) as outside,
    ):
        names = FakeDns(files_test=[[LOCAL]], evil_test=[[LOCAL]])
        async with guarded_client(AllowList([f"files.test:{outside.port}"]), names) as asked:
            with pytest.raises(UrlRefused):
                await fetched(asked, f"http://files.test:{outside.port}/")
        assert (len(outside.requests), inside.requests) == (1, [])


@pytest.mark.parametrize("location", ["file:///etc/passwd", "gopher://x/", "http://user:pw@files.test/", "http://[::"])
async def test_a_redirect_to_another_scheme_or_with_a_login_is_refused(location: str) -> None:
    async with site(http_redirect(location)) as (asked, url):
        with pytest.raises((UrlRefused, DownloadFailed)):
            await fetched(asked, url)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_every_kind_of_redirect_is_followed(status: int) -> None:
    async with (
        scripted_server(http_response(b"there")) as end,
        scripted_server(http_response(b"", f"{status} Moved", Location=f"http://files.test:{end.port}/")) as start,
        guarded_client(AllowList(["files.test"]), FakeDns()) as asked,
    ):
        assert await fetched(asked, f"http://files.test:{start.port}/") == b"there"


async def test_three_redirects_are_followed_and_the_fourth_is_not() -> None:
    async with (
        scripted_server(http_response(b"there")) as end,
        scripted_server(http_redirect(f"http://files.test:{end.port}/")) as third,
        scripted_server(http_redirect(f"http://files.test:{third.port}/")) as second,
        scripted_server(http_redirect(f"http://files.test:{second.port}/")) as first,
        scripted_server(http_redirect(f"http://files.test:{first.port}/")) as zeroth,
        guarded_client(AllowList(["files.test"]), FakeDns(files_test=[[LOCAL]])) as asked,
    ):
        assert await fetched(asked, f"http://files.test:{first.port}/") == b"there"
        with pytest.raises(DownloadFailed, match="redirects") as failed:
            await fetched(asked, f"http://files.test:{zeroth.port}/")
        assert not failed.value.is_transient


async def test_nothing_of_the_first_request_goes_on_to_where_it_is_sent() -> None:
    async with (
        scripted_server(http_response()) as end,
        scripted_server(http_redirect(f"http://other.test:{end.port}/")) as start,
    ):
        names = FakeDns(files_test=[[LOCAL]], other_test=[[LOCAL]])
        async with guarded_client(AllowList(["files.test", "other.test"]), names) as asked:
            await fetched(asked, f"http://files.test:{start.port}/")
        assert f"host: other.test:{end.port}".encode() in end.requests[0].lower()


async def test_cookies_are_neither_kept_nor_sent() -> None:
    """A request of one owner must not carry cookies of another owner's server."""
    said = http_response(Set_Cookie="session=ann; Path=/")
    async with scripted_server(said) as server, guarded_client(AllowList(["files.test"]), FakeDns()) as asked:
        for _ in range(2):
            await fetched(asked, f"http://files.test:{server.port}/")
        assert not asked.cookies
    assert len(server.requests) == 2
    assert not any(b"cookie" in head.lower() for head in server.requests)


@pytest.mark.parametrize(
    "location",
    ["http://xn--/", "http://xn--a.com/", "http://xn--bcher-kva..com/", "http://[", "http://files.test:70000/"],
)
async def test_a_redirect_to_what_is_no_name_is_a_failure(location: str) -> None:
    async with site(http_redirect(location)) as (asked, url):
        with pytest.raises((DownloadFailed, UrlRefused)):
            await fetched(asked, url)


async def test_proxies_and_logins_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted_server(http_response(b"proxy")) as proxy, site(http_response(b"straight")) as (asked, url):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with guarded_client(AllowList(["files.test"]), FakeDns(files_test=[[LOCAL]])) as fresh:
            assert await fetched(fresh, url) == b"straight"
        assert await fetched(asked, url) == b"straight"
        assert proxy.requests == []


async def test_a_gzip_bomb_is_neither_unpacked_nor_taken() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    async with site(http_response(bomb, Content_Encoding="gzip")) as (asked, url):
        with pytest.raises(DownloadFailed, match="gzip") as failed:
            await fetched(asked, url)
    assert not failed.value.is_transient


@pytest.mark.parametrize(
    ("said", "passing"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", True),
        (b"rubbish\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\n" + b"X-A: " + b"a" * 200_000, True),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1\r\n\r\na", False),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 300 Multiple Choices\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 425 Too Early\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 429 Slow down\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 499 Closed\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", True),
    ],
)
async def test_what_is_no_proper_file_is_a_failure_that_says_whether_to_try_again(said: bytes, passing: bool) -> None:
    async with site(send_bytes(said)) as (asked, url):
        with pytest.raises(DownloadFailed) as failed:
            await fetched(asked, url)
    assert failed.value.is_transient is passing


async def test_more_than_the_length_that_was_promised_is_not_read() -> None:
    async with site(send_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfilmand more")) as (asked, url):
        assert await fetched(asked, url) == b"film"


async def test_an_endless_body_comes_in_bounded_pieces_and_can_be_left() -> None:
    left = anyio.Event()

    async def send_until_left(stream: anyio.abc.ByteStream) -> None:
        try:
            await send_endless_body(stream)
        except anyio.BrokenResourceError:
            left.set()

    async with site(send_until_left) as (asked, url):
        with anyio.fail_after(10):
            async with download(asked, url) as file:
                async for chunk in file.chunks:
                    assert len(chunk) <= 256 * 1024
                    break
            await left.wait()


async def test_an_address_in_the_url_is_asked_itself() -> None:
    recorder, names = Recorder(), FakeDns()
    async with httpx2.AsyncClient(transport=SsrfGuardTransport(AllowList(), names, recorder)) as asked:
        await asked.get(f"http://{PUBLIC}:81/")
    assert ([request.url.host for request in recorder.went], names.asked) == ([PUBLIC], [])


@pytest.mark.parametrize("answers", [[], ["not an address"]])
async def test_a_name_without_an_address_is_a_failure_that_may_pass(answers: list[str]) -> None:
    async with guarded_client(AllowList(), FakeDns(films_test=[answers])) as asked:
        with pytest.raises(DownloadFailed, match="no address") as failed:
            await fetched(asked, "http://films.test/")
    assert failed.value.is_transient


async def test_four_addresses_of_a_name_are_tried() -> None:
    addresses = [f"1.1.1.{number}" for number in range(1, 7)]
    recorder = Recorder(dead=addresses)
    names = FakeDns(films_test=[addresses])
    async with httpx2.AsyncClient(transport=SsrfGuardTransport(AllowList(), names, recorder)) as asked:
        with pytest.raises(httpx2.ConnectError):
            await asked.get("http://films.test/")
    assert [request.url.host for request in recorder.went] == addresses[:4]


async def test_each_request_has_a_connection_of_its_own() -> None:
    """A kept connection would be used again by its address alone, whatever name it was made for."""
    connections = 0

    async def answer(stream: anyio.abc.SocketStream) -> None:
        nonlocal connections
        connections += 1
        async with stream:
            async for _ in stream:
                await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with await anyio.create_tcp_listener(local_host=LOCAL) as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, answer)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        names = FakeDns(files_test=[[LOCAL]], other_test=[[LOCAL]])
        async with guarded_client(AllowList(["files.test", "other.test"]), names) as asked:
            for host in ("files.test", "other.test", "files.test"):
                assert (await asked.get(f"http://{host}:{port}/")).status_code == 200
        tasks.cancel_scope.cancel()
    assert connections == 3


async def test_a_request_names_lamplighter_and_asks_for_the_file_as_it_is() -> None:
    async with (
        scripted_server(http_response()) as server,
        guarded_client(AllowList(["files.test"]), FakeDns(files_test=[[LOCAL]])) as asked,
    ):
        await fetched(asked, f"http://files.test:{server.port}/")
    head = server.requests[0].lower()
    assert b"user-agent: lamplighter\r\n" in head
    assert b"accept-encoding: identity\r\n" in head


async def test_certificates_and_settings_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
    async with guarded_client(AllowList(), FakeDns()) as asked:
        assert not asked.trust_env


async def test_an_owner_holds_no_more_than_its_slots_and_leaves_nothing_behind() -> None:
    limiter = PerOwnerLimiter(total=9, per_owner=1)
    gates = [anyio.Event() for _ in range(3)]
    running: list[int] = []

    async def work(number: int) -> None:
        async with limiter.slot("ann"):
            running.append(number)
            await gates[number].wait()
            running.remove(number)

    async with anyio.create_task_group() as tasks:
        for number in (0, 1):
            tasks.start_soon(work, number)
            await anyio.wait_all_tasks_blocked()
        assert running == [0]
        gates[0].set()
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(work, 2)  # it waits behind the one that waited before
        await anyio.wait_all_tasks_blocked()
        assert running == [1]
        gates[1].set()
        gates[2].set()
    assert limiter._by_owner == {}
