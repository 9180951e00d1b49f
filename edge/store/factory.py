"""Which store the settings name."""

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from edge.store.directory import open_directory
from edge.store.port import AssetStore, StoreError


class StoreSettings(Struct, frozen=True):
    """Where the bytes of assets lie. `url`: empty for a folder in `data`; `file:///mnt/shared` for one that several
    edges share; `s3://bucket/prefix`, `gs://…` or `az://account/container/…` for a bucket.

    `presign`: clients and runners fetch from the bucket itself, by URLs that end; off, the edge passes the bytes
    through. `replace`: this store takes the place of the one that the installation had, once.
    """

    url: str = ""
    presign: bool = True
    replace: bool = False


class StorePackageMissing(StoreError):
    """The library for this store is not installed."""


@asynccontextmanager
async def open_store(settings: StoreSettings, data: Path) -> AsyncIterator[AssetStore]:
    """The store, for as long as the block runs. Raises StoreError."""
    parts = urlsplit(settings.url)
    if parts.scheme in {"", "file"}:
        folder = Path(unquote(parts.path)) if parts.path else data / "assets"
        async with open_directory(folder) as directory:
            yield directory
        return
    try:
        remote = importlib.import_module("edge.store.remote")
    except ImportError as error:
        raise StorePackageMissing(
            f"assets in {parts.scheme}://… need a package that is not installed: pip install 'lamplighter[remote]'"
        ) from error
    async with remote.open_remote(settings.url, data / "scratch", presign=settings.presign) as bucket:
        yield bucket
