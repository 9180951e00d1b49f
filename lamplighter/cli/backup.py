"""`lamplighter backup`: write all that an installation cannot recreate to one file, while it runs."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import click
import msgspec
from anyio import to_thread
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bus.interface import Bus, BusError
from bus.nats.snapshots import BACKUP_STREAMS, SnapshotClient
from bus.open import open_for_backup
from edge.core.clock import utc_now
from edge.store.factory import open_store
from edge.store.port import AssetStore, StoreError
from lamplighter.cli import display
from lamplighter.cli.backup_archive import (
    ASSETS_PREFIX,
    FILES_PREFIX,
    FORMAT_VERSION,
    STREAMS_PREFIX,
    ArchivePart,
    ArchiveWriter,
    BackupManifest,
    StreamBackup,
    create_archive,
)
from lamplighter.cli.backup_target import (
    BackupRefused,
    BackupTarget,
    TargetSelection,
    exit_with_error,
    select_target,
    target_options,
)
from schemas.version import VERSION


def progress_bar(*, quiet: bool) -> Progress:
    """Return a progress bar on stderr, disabled if `quiet` or if stderr is not a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)


class BackupWriter:
    """One backup while it is written to its file."""

    def __init__(self, place: BackupTarget, writer: ArchiveWriter, bar: Progress) -> None:
        self._target = place
        self._writer = writer
        self._bar = bar
        self._task = bar.add_task("streams", total=len(BACKUP_STREAMS))

    async def write_all(self, bus: Bus, snapshots: SnapshotClient, store: AssetStore | None) -> BackupManifest:
        """Write the streams, the files, and with `store` the assets that the streams refer to."""
        streams = tuple([await self._write_stream(snapshots, name) for name in BACKUP_STREAMS])
        assets = None if store is None else await self._write_assets(bus, store)
        manifest = BackupManifest(
            format=FORMAT_VERSION,
            release=VERSION,
            made_at=utc_now(),
            streams=streams,
            files=await to_thread.run_sync(self._write_files),
            assets=assets,
        )
        await to_thread.run_sync(self._writer.write_manifest, manifest)
        return manifest

    async def _write_stream(self, snapshots: SnapshotClient, name: str) -> StreamBackup:
        member = await to_thread.run_sync(self._writer.start_part, f"{STREAMS_PREFIX}{name}")

        async def write(chunk: bytes) -> None:
            await to_thread.run_sync(member.write, chunk)

        snapshot = await snapshots.save(name, write)
        part = await to_thread.run_sync(member.close)
        self._bar.advance(self._task)
        return StreamBackup(snapshot, part)

    async def _write_assets(self, bus: Bus, store: AssetStore) -> tuple[ArchivePart, ...]:
        digests = sorted({key.rpartition(".")[2] for key in await bus.asset_references.rows()})
        self._bar.update(self._task, description="assets", total=len(BACKUP_STREAMS) + len(digests))
        return tuple([part for digest in digests if (part := await self._write_asset(store, digest))])

    async def _write_asset(self, store: AssetStore, digest: str) -> ArchivePart | None:
        """Write one asset; return None if it was deleted in the meantime."""
        self._bar.advance(self._task)
        if await store.stat(digest) is None:
            return None
        member = await to_thread.run_sync(self._writer.start_part, f"{ASSETS_PREFIX}{digest}")
        async for block in store.read(digest):
            await to_thread.run_sync(member.write, block)
        return await to_thread.run_sync(member.close)

    def _write_files(self) -> tuple[ArchivePart, ...]:
        found = (path for pattern in self._target.patterns for path in sorted(self._target.data.glob(pattern)))
        return tuple(self._write_file(path) for path in found if path.is_file())

    def _write_file(self, path: Path) -> ArchivePart:
        member = self._writer.start_part(f"{FILES_PREFIX}{path.relative_to(self._target.data)}")
        member.write(path.read_bytes())
        return member.close()


@asynccontextmanager
async def _open_sources(
    place: BackupTarget, *, assets: bool
) -> AsyncIterator[tuple[Bus, SnapshotClient, AssetStore | None]]:
    async with AsyncExitStack() as opened:
        bus, snapshots = await opened.enter_async_context(open_for_backup(place.broker))
        if not await snapshots.message_counts():
            raise BackupRefused("there is nothing to back up: no edge has used this broker yet")
        store = await opened.enter_async_context(open_store(place.store, place.assets)) if assets else None
        yield bus, snapshots, store


async def _write_backup(where: TargetSelection, file: Path, bar: Progress, *, assets: bool) -> BackupManifest:
    async with (
        where.open_target(stopped=False) as place,
        _open_sources(place, assets=assets) as (bus, snapshots, store),
    ):
        with create_archive(file) as writer, bar:
            return await BackupWriter(place, writer, bar).write_all(bus, snapshots, store)


def summarize(manifest: BackupManifest, file: Path) -> dict[str, object]:
    """Return the value that `--json` prints."""
    return {
        "file": str(file),
        "made_at": manifest.made_at,
        "release": manifest.release,
        "jobs": manifest.job_count,
        "assets": None if manifest.assets is None else len(manifest.assets),
        "bytes": sum(part.bytes for part in manifest.parts),
    }


def print_summary(manifest: BackupManifest, file: Path, verb: str, *, as_json: bool) -> None:
    """Print what was done to stdout."""
    facts = summarize(manifest, file)
    if as_json:
        sys.stdout.write(msgspec.json.encode(facts).decode() + "\n")
        return
    jobs = display.format_count(manifest.job_count, "job")
    assets = (
        "without the content of files"
        if manifest.assets is None
        else display.format_count(len(manifest.assets), "file")
    )
    click.echo(f"{verb} {jobs}, {assets} ({facts['bytes']} bytes, of {manifest.made_at:%Y-%m-%d %H:%M})")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@target_options
@click.option("--assets", is_flag=True, help="Include the content of all files. Omit it where the store is a bucket.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON, and no progress.")
def backup(file: Path, data: Path, config: Path | None, assets: bool, as_json: bool) -> None:
    """Write all jobs, keys, file references, power records and usage to FILE, while the installation runs.

    FILE contains secrets: protect it as you protect a key. Exit code 3 if the broker cannot be reached, 4 if there is
    nothing to back up, 1 if FILE cannot be written.
    """
    try:
        manifest = asyncio.run(
            _write_backup(select_target(data, config), file, progress_bar(quiet=as_json), assets=assets)
        )
    except (BusError, BackupRefused, StoreError, OSError) as error:
        exit_with_error(error, as_json=as_json)
    else:
        print_summary(manifest, file, "backed up", as_json=as_json)
