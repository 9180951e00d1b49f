"""H1: one connection whose request never ends its head must not cost anybody else time, nor the edge memory.

httptools, which parses here, has no limit of its own: 140 MiB of one header froze the edge.
"""

import json
from pathlib import Path

import anyio
import pytest

from tests.attack.conftest import GET, AttackTarget, ServeFunction, read_response
from tests.support.installation import run_new_installation

LIMIT = 32 * 1024
SENT_MOST = 8 * 1024 * 1024  # far beyond what is taken, and little enough where nothing stops it
PIECE = b"a" * 65536

CHUNKED = b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "header": (b"GET /livez HTTP/1.1\r\nX: ", PIECE),
    "url": (b"GET /", PIECE),
    "many headers": (b"GET /livez HTTP/1.1\r\n", b"X-Header: value\r\n" * 4096),
    "empty lines": (b"", b"\r\n" * 32768),
    "chunk extension": (CHUNKED + b"1;x=", PIECE),
    "trailer": (CHUNKED + b"1\r\na\r\n0\r\nX: ", PIECE),
}


async def flood(target: AttackTarget, start: bytes, piece: bytes) -> tuple[int, bytes]:
    """Send `piece` repeatedly until the server closes or SENT_MOST is sent. Return the bytes sent and the response."""
    sent, said = 0, b""
    async with target.connected() as stream, anyio.create_task_group() as tasks:

        async def listen() -> None:
            nonlocal said
            said = await read_response(stream, within_s=20)

        tasks.start_soon(listen)
        try:
            await stream.send(start)
            while sent < SENT_MOST:
                await stream.send(piece)
                sent += len(piece)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        if sent >= SENT_MOST:
            tasks.cancel_scope.cancel()
    return sent, said


@pytest.mark.parametrize("kind", ENDLESS)
async def test_a_head_that_never_ends_is_refused_after_its_bytes(serve: ServeFunction, tls: bool, kind: str):
    async with serve(tls=tls) as target:
        sent, said = await flood(target, *ENDLESS[kind])
        assert sent < SENT_MOST, "the server read on"
        if said:  # a reset may overtake it
            assert said.startswith(b"HTTP/1.1 431 ")
        assert (await target.ask()).startswith(b"HTTP/1.1 200 ")


async def test_the_refusal_is_a_problem_that_arrives(serve: ServeFunction):
    async with serve() as target:
        said = await target.ask(b"GET / HTTP/1.1\r\nX: " + b"a" * (LIMIT + 1) + b"\r\n\r\n")
    head, _, body = said.partition(b"\r\n\r\n")
    problem = json.loads(body)
    assert b"application/problem+json" in head
    assert (problem["code"], problem["status"]) == ("head_too_large", 431)
    assert "32768 bytes" in problem["detail"]


async def test_a_head_that_comes_too_slowly_is_refused_after_its_time(serve: ServeFunction, tls: bool):
    async with serve(tls=tls, head_s=0.5) as target, target.connected() as stream:
        said = b""
        async with anyio.create_task_group() as tasks:

            async def dribble() -> None:
                try:
                    await stream.send(b"GET / HTTP/1.1\r\nX: ")
                    while True:
                        await stream.send(b"a")
                        await anyio.sleep(0.05)
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    return

            tasks.start_soon(dribble)
            said = await read_response(stream)
            tasks.cancel_scope.cancel()
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"head_timeout"' in said


async def test_empty_lines_after_a_response_do_not_keep_a_connection(serve: ServeFunction):
    """Any byte stops uvicorn's own timer for idle connections."""
    async with serve(head_s=0.5) as target, target.connected() as stream:
        await stream.send(GET)
        assert (await read_response(stream)).startswith(b"HTTP/1.1 200 ")
        await stream.send(b"\r\n")
        assert (await read_response(stream)).startswith(b"HTTP/1.1 408 ")


ALLOWED = {
    "a large header": (b"GET /large HTTP/1.1\r\nX: " + b"a" * 30_000 + b"\r\n\r\n", b"/large 0"),
    "a large body": (b"POST /body HTTP/1.1\r\nContent-Length: 3000000\r\n\r\n" + b"b" * 3_000_000, b"/body 3000000"),
    "small chunks": (CHUNKED + b"1\r\na\r\n" * 50_000 + b"0\r\n\r\n", b"/x 50000"),
    "a trailer": (CHUNKED + b"1\r\na\r\n0\r\nX: y\r\n\r\n", b"/x 1"),
}


@pytest.mark.parametrize("kind", ALLOWED)
async def test_what_is_within_the_limit_is_served_as_before(serve: ServeFunction, tls: bool, kind: str):
    request, expected = ALLOWED[kind]
    async with serve(tls=tls) as target, target.connected() as stream:
        for _ in range(2):  # on one connection: each head has its own limit
            await stream.send(request)
            said = await read_response(stream)
            assert said.startswith(b"HTTP/1.1 200 ")
            assert said.endswith(expected)


async def test_requests_sent_at_once_are_answered_in_order(serve: ServeFunction):
    async with serve() as target, target.connected() as stream:
        heads = [f"GET /{number} HTTP/1.1\r\nX: {'a' * 5000}\r\n\r\n".encode() for number in range(20)]
        await stream.send(b"".join(heads))
        said = b""
        with anyio.fail_after(10):
            while b"/19 0" not in said:
                said += await stream.receive()
    assert said.count(b"HTTP/1.1 200 ") == 20


async def test_the_whole_edge_refuses_it_and_may_open_as_many_files_as_it_is_allowed(tmp_path: Path):
    async with run_new_installation(tmp_path, "process", None) as running:
        target = AttackTarget(int(running.installation.url.rsplit(":", 1)[1]), tls=False)
        sent, _ = await flood(target, *ENDLESS["header"])
        assert sent < SENT_MOST
        assert [job.id async for job in running.ann.jobs()] == []
        limits = await anyio.Path(f"/proc/{running.installation.edge.pid}/limits").read_text()
        soft, hard = next(line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files"))
        assert soft == hard
        assert "head_too_large" in running.installation.edge.log.read_text()
