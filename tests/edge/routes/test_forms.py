"""The memory limits of multipart forms."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from edge.http.request_input import FORM_TEXT_LIMIT_BYTES, FormStorage, open_form
from schemas.problems import ProblemError
from tests.support.served_edge import ServedEdge

HEADERS = {"Content-Type": "multipart/form-data; boundary=x"}
END = b"\r\n--x--\r\n"


def text(name: str) -> bytes:
    return f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/assets"])
@pytest.mark.parametrize("fields", [1, 300])
async def test_texts_are_bounded_however_many_there_are(edge: ServedEdge, path: str, fields: int):
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        for number in range(fields):
            yield text(f"field{number}")
            for _ in range(300 // fields):
                given += 65536
                yield b"a" * 65536
            yield b"\r\n"
        yield END

    reply = await edge.ann.post(path, content=endless(), headers=HEADERS)
    assert (reply.status_code, reply.json()["code"]) == (413, "body_too_large")
    assert given > FORM_TEXT_LIMIT_BYTES
    assert (await edge.ann.get("/v1/assets")).json()["assets"] == []


async def test_a_text_of_the_most_that_may_be_is_read(edge: ServedEdge):
    job = json.dumps({"endpoint": "echo", "input": {"text": "hi"}})
    body = text("job") + job.encode() + b" " * (FORM_TEXT_LIMIT_BYTES - len(job)) + END
    assert (await edge.ann.post("/v1/jobs", content=body, headers=HEADERS)).status_code == 202


@pytest.mark.parametrize("body", [b"", b"--x", text("job"), b"nonsense", text("job") + b"{}"])
async def test_what_breaks_off_or_is_no_form_is_malformed(edge: ServedEdge, body: bytes):
    reply = await edge.ann.post("/v1/jobs", content=body, headers=HEADERS)
    assert (reply.status_code, reply.json()["code"]) == (400, "body_malformed")


async def test_a_form_without_a_boundary_says_so(edge: ServedEdge):
    reply = await edge.ann.post("/v1/jobs", content=b"x", headers={"Content-Type": "multipart/form-data"})
    assert "boundary" in reply.json()["detail"]


class EndlessForm:
    """A request whose body is an endless file. `given`: the bytes that were read of it."""

    content_type = ("multipart/form-data", {"boundary": "x"})

    def __init__(self) -> None:
        self.given = 0

    async def stream(self) -> AsyncIterator[bytes]:
        yield text("film").replace(b'"film"', b'"film"; filename="a.mp4"')
        while True:
            self.given += 1000
            yield b"a" * 1000


async def test_a_file_is_bounded_while_it_comes(tmp_path: Path):
    request = EndlessForm()
    with pytest.raises(ProblemError, match="at most 10000 bytes"):
        async with open_form(cast("Any", request), FormStorage(10_000, tmp_path)):
            pass
    assert request.given < 20_000
