"""`lamplighter restore`: restore an installation from a backup into an empty place."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import click
from anyio import to_thread
from rich.progress import Progress

from bus.interface import Bus, BusError
from bus.nats.snapshots import SnapshotClient
from bus.open import open_for_backup
from bus.secret_files import atomic_write
from edge.core.clock import utc_now
from edge.core.installation import check_store_fingerprint
from edge.store.factory import open_store
from edge.store.port import StoreError
from lamplighter.cli import display
from lamplighter.cli.backup import print_summary, progress_bar, summarize
from lamplighter.cli.backup_archive import (
    ASSETS_PREFIX,
    FILES_PREFIX,
    ArchivePart,
    ArchiveReader,
    BackupManifest,
    BackupUnusable,
    open_archive,
)
from lamplighter.cli.backup_encryption import KeyFileUnusable, read_key_file
from lamplighter.cli.backup_target import (
    BackupRefused,
    BackupTarget,
    TargetSelection,
    exit_with_error,
    key_file_option,
    select_target,
    target_options,
)


async def _read_in_thread(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield blocks that a thread reads."""
    while (block := await to_thread.run_sync(next, blocks, None)) is not None:
        yield block


class BackupRestorer:
    """One backup while it is restored."""

    def __init__(self, place: BackupTarget, reader: ArchiveReader, bar: Progress) -> None:
        self._target = place
        self._reader = reader
        self._bar = bar
        self._task = bar.add_task("restoring", total=len(reader.manifest.parts))

    async def restore_all(self, bus: Bus, snapshots: SnapshotClient) -> None:
        """Restore files first: without them, enrolled hosts would not recognize the installation."""
        manifest = self._reader.manifest
        for part in manifest.files:
            await to_thread.run_sync(self._restore_file, part)
        for kept in manifest.streams:
            await snapshots.restore(
                kept.snapshot, _read_in_thread(self._reader.read_blocks(kept.part)), self._target.broker.replicas
            )
            self._bar.advance(self._task)
        if manifest.assets is not None:
            await self._restore_assets(bus, manifest.assets)

    def _restore_file(self, part: ArchivePart) -> None:
        path = (self._target.data / part.name.removeprefix(FILES_PREFIX)).resolve()
        if not path.is_relative_to(self._target.data.resolve()):
            raise BackupUnusable(
                f"{part.name} of the backup is outside the data folder: the file was changed, use another copy"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, b"".join(self._reader.read_blocks(part)))
        self._bar.advance(self._task)

    async def _restore_assets(self, bus: Bus, parts: tuple[ArchivePart, ...]) -> None:
        """Write the assets to the current store, and record that store as the installation's."""
        async with open_store(self._target.store, self._target.assets) as store:
            for part in parts:
                await store.write(
                    _read_in_thread(self._reader.read_blocks(part)), part.name.removeprefix(ASSETS_PREFIX), part.bytes
                )
                self._bar.advance(self._task)
            await check_store_fingerprint(
                bus.installation_constants, (await store.survey()).fingerprint, utc_now, replace=True
            )


async def _clear_target(snapshots: SnapshotClient, *, replace: bool) -> None:
    """Delete what is there. Raises BackupRefused if an edge runs, or if there is data and `replace` is False."""
    if await snapshots.is_edge_running():
        raise BackupRefused("an edge uses this broker: stop every edge first")
    count = sum((await snapshots.message_counts()).values())
    if count and not replace:
        raise BackupRefused(
            f"this installation is not empty ({display.format_count(count, 'message')}): restore into a new one, or "
            "give --replace to delete its data"
        )
    await snapshots.delete_all_streams()


async def _restore_backup(
    where: TargetSelection, file: Path, secret: bytes | None, bar: Progress, *, replace: bool
) -> BackupManifest:
    with open_archive(file, secret) as reader:
        await to_thread.run_sync(reader.verify)
        async with where.open_target(stopped=True) as place, open_for_backup(place.broker) as (bus, snapshots):
            await _clear_target(snapshots, replace=replace)
            with bar:
                await BackupRestorer(place, reader, bar).restore_all(bus, snapshots)
        return reader.manifest


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@target_options
@key_file_option
@click.option("--replace", is_flag=True, help="Delete the data that is there now.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON, and no progress.")
def restore(  # noqa: PLR0913, PLR0917 - the options of the command
    file: Path, data: Path, config: Path | None, key_file: Path | None, replace: bool, as_json: bool
) -> None:
    """Restore the installation in FILE into an empty place. No edge may run there in the meantime.

    Jobs that were running are settled by the usual retry rules once the edge is up. Exit code 3 if the broker cannot be
    reached, 4 if FILE is damaged or the place is not empty, 1 if something cannot be written: then repeat it with
    --replace.
    """
    try:
        secret = read_key_file(key_file) if key_file else None
        manifest = asyncio.run(
            _restore_backup(select_target(data, config), file, secret, progress_bar(quiet=as_json), replace=replace)
        )
    except (BusError, BackupRefused, BackupUnusable, KeyFileUnusable, StoreError, OSError) as error:
        exit_with_error(error, as_json=as_json)
    else:
        print_summary(summarize(manifest, file), "restored", "from", as_json=as_json)
