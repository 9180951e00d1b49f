"""Open the asset store that the settings name."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from edge.store.directory import open_directory
from edge.store.port import AssetStore, StoreError
from schemas.version import import_extra


class StoreSettings(Struct, frozen=True):
    """The `[store]` section: where the asset store is."""

    url: str = ""
    """Where files are kept. Empty: a folder in `data`. `file:///mnt/shared`: a folder that several edges share.
    `s3://bucket/prefix`, `gs://…` or `az://account/container/…`: a bucket.
    """
    presign: bool = True
    """Clients and runners fetch from the bucket by URLs that expire. Off: the edge passes the bytes through."""
    replace: bool = False
    """Accept this store although the installation used another one before. Set it for one start only."""


class StorePackageMissing(StoreError):
    """The Python package for this store is not installed."""


@asynccontextmanager
async def open_store(settings: StoreSettings, data: Path) -> AsyncIterator[AssetStore]:
    """Open the store while the block runs. Raises StoreError."""
    url = urlsplit(settings.url)
    if url.scheme in {"", "file"}:
        folder = Path(unquote(url.path)) if url.path else data / "assets"
        async with open_directory(folder) as directory:
            yield directory
        return
    remote = import_extra(f"{__package__}.remote", "remote", f"[store] url = {url.scheme}://…", StorePackageMissing)
    async with remote.open_remote(settings.url, data / "scratch", presign=settings.presign) as bucket:
        yield bucket
