"""The fake of the port `runner.assets.cache.AssetSource`: a dictionary that can be held back and made to fail."""

from pathlib import Path

import anyio

from runner.assets.cache import AssetSource
from runner.assets.port import AssetGone, AssetInfo
from schemas.asset import Digest
from tests.support.asset_server import sha256_of


class FakeAssetFetch(AssetSource):
    """Fake source. `gate` holds downloads back until it is set; the next one raises `fault`, if it is set."""

    def __init__(self, *bodies: bytes) -> None:
        self.bodies = {sha256_of(body): body for body in bodies}
        self.fetched: list[Digest] = []
        self.asked_about: list[tuple[str, Digest]] = []
        self.asked = anyio.Event()
        self.gate = anyio.Event()
        self.gate.set()
        self.fault: Exception | None = None

    async def get_info(self, owner: str, sha256: Digest) -> AssetInfo:
        self.asked_about.append((owner, sha256))
        return AssetInfo(len(self._body(sha256)), ".mp4")

    async def download(self, owner: str, sha256: Digest, into: Path) -> None:
        self.fetched.append(sha256)
        self.asked.set()
        await self.gate.wait()
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        await anyio.Path(into).write_bytes(self._body(sha256))

    def _body(self, sha256: Digest) -> bytes:
        if sha256 not in self.bodies:
            raise AssetGone(sha256)
        return self.bodies[sha256]
