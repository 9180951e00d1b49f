"""An upload over a network that breaks, and over an edge that is killed: the client resumes by itself."""

import os
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import msgspec
import pytest

from edge.store.unfinished_uploads import CHECKPOINT_BYTES, Upload
from lamplighter import AsyncClient
from tests.e2e.conftest import process_only
from tests.support.installation import RunningInstallation
from tests.support.tcp_proxy import TcpProxy, run_proxy
from tests.support.wait import wait_for

MIB = 1024 * 1024
SIZE = CHECKPOINT_BYTES + 48 * MIB


class CuttingProxy:
    """A proxy that cuts the network once `at` bytes have passed; resent bytes count as negative numbers."""

    def __init__(self, proxy: TcpProxy, at: int) -> None:
        self._proxy, self._at = proxy, at
        self.cut = anyio.Event()
        self.place, self.least = 0, 0

    def __call__(self, amount: int) -> None:
        self.place += amount
        if self.cut.is_set():
            self.least = min(self.least or self.place, self.place)
        elif self.place >= self._at:
            self._proxy.cut()
            self.cut.set()


@process_only
@pytest.mark.parametrize("killed", [False, True], ids=["cut", "edge killed"])
async def test_it_goes_on_by_itself(running: RunningInstallation, tmp_path: Path, killed: bool):
    port = urlsplit(running.installation.url).port
    assert port is not None
    file, at = tmp_path / "face.mp4", CHECKPOINT_BYTES + 40 * MIB  # sockets and proxy buffer some
    piece = os.urandom(MIB)
    file.write_bytes(b"".join(number.to_bytes(4, "big") + piece[4:] for number in range(SIZE // MIB)))
    key = running.ann._http.headers["authorization"].removeprefix("Bearer ")
    async with run_proxy("127.0.0.1", port) as proxy, anyio.create_task_group() as tasks:
        cutting = CuttingProxy(proxy, at)
        async with AsyncClient(f"http://127.0.0.1:{proxy.port}", key, cache=tmp_path / "own.json") as client:

            async def durable() -> bool:
                (state,) = (tmp_path / "edge" / "uploads").glob("*.json")
                return msgspec.json.decode(state.read_bytes(), type=Upload).offset >= CHECKPOINT_BYTES

            async def trouble() -> None:
                await cutting.cut.wait()
                if killed:
                    await wait_for(durable)
                    await running.installation.edge.kill()
                    await running.installation.start_edge()
                proxy.heal()

            tasks.start_soon(trouble)
            asset = await client.upload(file, cutting)
    assert cutting.place == SIZE
    assert cutting.least >= (CHECKPOINT_BYTES if killed else 1), "it began anew"
    got = await running.ann._http.get(asset.url)
    assert got.content == file.read_bytes()
