"""A download that breaks off: both clients leave nothing of it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio.to_thread
import httpx2
import pytest

from lamplighter import AsyncClient, Client, Unreachable
from tests.support.served_edge import ServedEdge


class Half(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body that breaks off."""

    def __iter__(self) -> Iterator[bytes]:
        yield b"half of it"
        raise httpx2.ReadError("cut")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"half of it"
        raise httpx2.ReadError("cut")


async def test_half_a_download_leaves_nothing(face: ServedEdge, tmp_path: Path):
    async with AsyncClient(face.url, face.texts["ann"], cache=tmp_path / "cache" / "d.json") as client:
        job = await client.submit("echo", text="hello")
    broken, folder = httpx2.MockTransport(lambda _: httpx2.Response(200, stream=Half())), tmp_path / "saved"
    folder.mkdir()
    async with AsyncClient(face.url, transport=broken) as client:
        with pytest.raises(Unreachable):
            await client.download(job, "out.txt", folder / "out.txt")
    with Client(face.url, transport=broken) as blocking, pytest.raises(Unreachable):
        await anyio.to_thread.run_sync(lambda: blocking.download(job, "out.txt", folder / "out.txt"))
    assert list(folder.iterdir()) == []
