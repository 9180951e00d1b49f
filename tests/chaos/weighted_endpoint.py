"""The endpoint `weighted`: `stamped` with a volume and a cache. Each cell of the matrix gives it another volume.

A job is submitted while a label that no host has keeps the endpoint from starting. Then the file of the endpoint is
replaced, and the host fills the volume while the job waits. The job's output is the content of the volume, so that the
checker sees a volume that was used half.
"""

import shutil
from pathlib import Path

import anyio.to_thread
import httpx2

from bus.interface import Bus
from bus.secret_files import atomic_write
from schemas.endpoint_parts import VOLUMES_OWNER
from tests.chaos.recording_client import BLOCKS
from tests.support.asset_server import sha256_of
from tests.support.installation import HOST, ROOT
from tests.support.wait import wait_for

NAME = "weighted"
PARTS = ("a", "model/b")  # the files of the volume, as stamped/main.py reads them
CLOSED = '\n[labels]\nclosed = "yes"\n'
OFFER_TIMEOUT_S = 60.0

_STAMPED = ROOT / "tests" / "chaos" / "endpoints" / "stamped"
_CACHE = '[[caches]]\nname = "kernels"\npath = "/kernels"\nmax_mb = 8\n'


def weighted_folder(installation: Path) -> Path:
    """Return the folder of the endpoint."""
    return installation / "weighted"


def write_closed_endpoint(installation: Path) -> None:
    """Write the endpoint as it is until the first cell: without a volume, and it cannot start. Blocking."""
    folder = weighted_folder(installation)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_STAMPED / "main.py", folder / "main.py")
    _write(installation, CLOSED)


def _write(installation: Path, more: str) -> None:
    text = (_STAMPED / "endpoint.toml").read_text().replace('name = "stamped"', f'name = "{NAME}"\npool = "stamped"', 1)
    atomic_write(weighted_folder(installation) / "endpoint.toml", text + more, mode=0o644)


async def close_endpoint(installation: Path, bus: Bus) -> None:
    """Let no job of the endpoint start; return when the host has said so."""
    await anyio.to_thread.run_sync(_write, installation, CLOSED)

    async def is_closed() -> bool:
        row = await bus.capabilities.get(HOST)
        return row is not None and NAME in row.value.unmet

    await wait_for(is_closed, timeout_s=OFFER_TIMEOUT_S)


async def upload_weights(admin: httpx2.AsyncClient, text: str) -> list[str]:
    """Upload the files of a volume: `text`, BLOCKS times, in two halves. Return their digests."""
    digests = []
    for number, part in enumerate(PARTS):
        body = text.encode() * (BLOCKS // len(PARTS))
        padding = b"" if number == 0 else b"\n"  # the two halves would be one file
        reply = await admin.post(f"/v1/assets?owner={VOLUMES_OWNER}&name={Path(part).name}", content=body + padding)
        assert reply.is_success, reply.text
        digests.append(sha256_of(body + padding))
    return digests


async def open_endpoint(installation: Path, digests: list[str]) -> None:
    """Let jobs of the endpoint start with the volume of these files, and with a cache."""
    files = "".join(
        f'[[volumes.files]]\npath = "{part}"\nsha256 = "{digest}"\n'
        for part, digest in zip(PARTS, digests, strict=True)
    )
    volume = f'\n[[volumes]]\nname = "weights"\npath = "/weights"\n{files}'
    await anyio.to_thread.run_sync(_write, installation, volume + _CACHE)
