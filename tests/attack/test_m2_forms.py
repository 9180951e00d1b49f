"""M2: a form must not hold its files in memory, nor put more onto the disk than its owner may have.

900 files of 1 MiB made 1 GB of memory; ten of 100 MiB made 1 GB in the machine's own /tmp, of which one was kept.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from litestar.datastructures import UploadFile

from edge.http.request_input import (
    FILE_MEMORY_LIMIT_BYTES,
    FORM_FILE_LIMIT,
    FORM_MEMORY_LIMIT_BYTES,
    FormStorage,
    open_form,
)
from edge.owners.quotas import OwnerQuotaOverride
from schemas.problems import ProblemError
from tests.attack.conftest import AttackTarget
from tests.edge.routes.conftest import edge
from tests.support.served_edge import ServedEdge

__all__ = ["edge"]

HEADERS = {"Content-Type": "multipart/form-data; boundary=x"}
END = b"\r\n--x--\r\n"
MIB = 1024 * 1024


def part(number: int) -> bytes:
    return f'\r\n--x\r\nContent-Disposition: form-data; name="f{number}"; filename="{number}.mp4"\r\n\r\n'.encode()


class Form:
    """A request with many files. `given`: the bytes that were read of it."""

    content_type = ("multipart/form-data", {"boundary": "x"})

    def __init__(self, files: int, size: int) -> None:
        self._files, self._size = files, size
        self.given = 0

    async def stream(self) -> AsyncIterator[bytes]:
        for number in range(self._files):
            yield part(number)
            for _ in range(self._size // 65536):
                self.given += 65536
                yield b"a" * 65536
        yield END


def place(file: UploadFile) -> Path:
    """Return the path of the open file."""
    return Path(f"/proc/self/fd/{file.file.fileno()}").readlink()


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_files_lie_in_the_folder_and_not_in_memory(tmp_path: Path):
    form = Form(files=40, size=2 * FILE_MEMORY_LIMIT_BYTES)
    async with open_form(cast("Any", form), FormStorage(100 * MIB, tmp_path)) as fields:
        files = [value for value in fields.values() if isinstance(value, UploadFile)]
        assert len(files) == 40
        assert all(file.rolled_to_disk for file in files)
        assert all(place(file).is_relative_to(tmp_path) for file in files)
    assert names(tmp_path) == []


async def test_many_small_files_are_no_more_in_memory_than_a_large_one(tmp_path: Path):
    async with open_form(
        cast("Any", Form(files=90, size=FILE_MEMORY_LIMIT_BYTES)), FormStorage(100 * MIB, tmp_path)
    ) as fields:
        files = [value for value in fields.values() if isinstance(value, UploadFile)]
        held = sum(FILE_MEMORY_LIMIT_BYTES for file in files if not file.rolled_to_disk)
    assert 0 < held <= FORM_MEMORY_LIMIT_BYTES


async def test_files_are_bounded_together(tmp_path: Path):
    form = Form(files=10, size=MIB)
    with pytest.raises(ProblemError, match="the files of a form may have at most"):
        async with open_form(cast("Any", form), FormStorage(2 * MIB, tmp_path)):
            pass
    assert form.given < 3 * MIB
    assert names(tmp_path) == []


async def test_no_form_opens_files_without_end(tmp_path: Path):
    with pytest.raises(ProblemError, match=f"at most {FORM_FILE_LIMIT} files"):
        async with open_form(cast("Any", Form(files=900, size=65536)), FormStorage(2000 * MIB, tmp_path)):
            pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("path", ["/v1/assets", "/v1/jobs"])
async def test_the_quota_stops_a_form_while_it_comes(edge: ServedEdge, path: str):
    """Without a length the edge cannot reject early. It accepts up to the rest of the quota."""
    edge.world.limits["ann"] = OwnerQuotaOverride(bytes=300_000)
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        yield part(0)
        while given < 32 * MIB:
            given += 65536
            yield b"a" * 65536
        yield END

    reply = await edge.ann.post(path, content=endless(), headers=HEADERS)
    assert (reply.status_code, reply.json()["code"]) == (429, "quota_exceeded")
    assert (await edge.ann.get("/v1/assets")).json()["assets"] == []
    assert (await edge.ann.post("/v1/assets", content=b"a" * 300_000)).status_code == 201, "nothing stays reserved"


async def test_a_form_that_says_its_length_is_refused_before_it_is_read(edge: ServedEdge):
    edge.world.limits["ann"] = OwnerQuotaOverride(bytes=300_000)
    target = AttackTarget(int(edge.url.rsplit(":", 1)[1]), tls=False)

    def head(size: int) -> bytes:
        return (
            "POST /v1/assets HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            f"X-API-Key: {edge.texts['ann']}\r\nContent-Type: {HEADERS['Content-Type']}\r\n"
            f"Content-Length: {size}\r\n\r\n"
        ).encode()

    said = await target.ask(head(500 * MIB))
    assert said.startswith(b"HTTP/1.1 413 ")
    edge.world.assets.limit = 10 * MIB
    said = await target.ask(head(3_000_000))  # within what the edge takes at all, beyond the quota
    assert said.startswith(b"HTTP/1.1 429 ")
    assert b'"code":"quota_exceeded"' in said
