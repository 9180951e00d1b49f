"""`lamplighter backup` and `lamplighter restore`: all that an installation cannot recreate, to one file and back.

A backup is written while the installation runs. A restore needs an empty place.
"""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path

import click
import msgspec
from anyio import to_thread
from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bus.interface import Bus, BusError
from bus.nats.snapshots import BACKUP_STREAMS, SnapshotClient
from bus.open import open_for_backup
from bus.secret_files import atomic_write, make_private_folder
from edge.core.clock import utc_now
from edge.core.installation import check_store_fingerprint, record_backup
from edge.store.directory import open_store
from edge.store.port import AssetStore, StoreError
from lamplighter.cli import display
from lamplighter.cli.backup_archive import (
    ASSETS_PREFIX,
    FILES_PREFIX,
    FORMAT_VERSION,
    STREAMS_PREFIX,
    ArchivePart,
    ArchiveReader,
    ArchiveWriter,
    BackupManifest,
    BackupUnusable,
    KeyFileUnusable,
    StreamBackup,
    create_archive,
    is_encrypted,
    open_archive,
    read_key_file,
)
from lamplighter.cli.backup_target import (
    BackupExists,
    BackupRefused,
    BackupTarget,
    TargetSelection,
    exit_with_error,
    key_file_option,
    select_target,
    target_options,
)
from lamplighter.cli.language import say
from schemas.version import VERSION

NAME_PREFIX = "lamplighter-"
NAME_PATTERN = re.compile(rf"{NAME_PREFIX}\d{{8}}T\d{{6}}Z\.zip(\.enc)?")  # sorts by age


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


async def _write_backup(  # noqa: PLR0913 - the options of the command, where they are used
    where: TargetSelection, file: Path, secret: bytes | None, bar: Progress, *, assets: bool, make_folder: bool
) -> BackupManifest:
    async with (
        where.open_target(stopped=False) as place,
        _open_sources(place, assets=assets) as (bus, snapshots, store),
    ):
        if make_folder and not file.parent.exists():
            make_private_folder(file.parent)
        with create_archive(file, secret) as writer, bar:
            manifest = await BackupWriter(place, writer, bar).write_all(bus, snapshots, store)
        with suppress(BusError):  # the backup is good, only its time will be missing in the metrics
            await record_backup(bus.installation_constants, manifest.made_at)
        return manifest


class BackupSummary(Struct, frozen=True):
    """The output of `--json`. `removed`: backups that made room for the new one. `assets`: None without them."""

    file: str
    made_at: datetime
    release: str
    jobs: int
    assets: int | None
    bytes: int
    encrypted: bool
    removed: tuple[str, ...] = ()


def summarize(manifest: BackupManifest, file: Path, removed: Iterable[Path] = ()) -> BackupSummary:
    """Return the facts about a backup."""
    return BackupSummary(
        file=str(file),
        made_at=manifest.made_at,
        release=manifest.release,
        jobs=manifest.job_count,
        assets=None if manifest.assets is None else len(manifest.assets),
        bytes=sum(part.bytes for part in manifest.parts),
        encrypted=is_encrypted(file),
        removed=tuple(map(str, removed)),
    )


def print_summary(summary: BackupSummary, verb: str, preposition: str, *, as_json: bool) -> None:
    """Print what was done to stdout, as in "backed up 3 jobs, 2 files (9 bytes, of 2026-11-30 02:00) to kept.zip"."""
    if as_json:
        sys.stdout.write(msgspec.json.encode(summary).decode() + "\n")
        return
    jobs = display.format_count(summary.jobs, "job")
    assets = "without the content of files" if summary.assets is None else display.format_count(summary.assets, "file")
    facts = f"{summary.bytes} bytes, of {summary.made_at:%Y-%m-%d %H:%M}{', encrypted' if summary.encrypted else ''}"
    click.echo(say(f"{verb} {jobs}, {assets} ({facts}) {preposition} {summary.file}"))
    for path in summary.removed:
        click.echo(say(f"removed {path}"))


def choose_file(target: Path, now: datetime, *, keep: int | None, encrypted: bool, overwrite: bool) -> Path:
    """Return the file to write: `target`, or if that is a folder, or with `keep`, a file in it with the time as name.

    Raises BackupExists.
    """
    if keep is not None and target.is_file():
        raise BackupExists(f"--keep needs a folder, and {target} is a file: name the folder of the backups")
    name = f"{NAME_PREFIX}{now:%Y%m%dT%H%M%SZ}.zip{'.enc' if encrypted else ''}"
    file = target / name if keep is not None or target.is_dir() else target
    if file.exists() and not overwrite:
        raise BackupExists(f"{file} exists: choose another name, or give --overwrite")
    return file


def remove_old_backups(folder: Path, keep: int) -> list[Path]:
    """Remove all but the `keep` newest of the backups that `choose_file` named. Return the removed ones."""
    kept = sorted((path for path in folder.iterdir() if NAME_PATTERN.fullmatch(path.name)), key=lambda path: path.name)
    old = kept[:-keep]
    for path in old:
        path.unlink()
    return old


class _BackupGroup(click.Group):
    """A group whose command without a verb writes a backup: `backup FILE` is `backup write FILE`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {*self.commands, *self.get_help_option_names(ctx)}
        return super().parse_args(ctx, args if args and args[0] in known else ["write", *args])


@click.group(cls=_BackupGroup)
def backup(**_: object) -> None:
    """Back up the installation to one file, while it runs: `backup FILE`. Check a backup: `backup verify FILE`.

    The options of `backup FILE` are those of `backup write`.
    """


@backup.command()
@click.argument("file", type=click.Path(path_type=Path))
@target_options
@click.option("--assets", is_flag=True, help="Include the content of all files. Omit it where the store is a bucket.")
@click.option("--keep", type=click.IntRange(1), help="Keep at most this many backups in FILE, which is a folder.")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@key_file_option
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON, and no progress.")
def write(  # noqa: PLR0913, PLR0917 - the options of the command
    file: Path,
    data: Path,
    config: Path | None,
    assets: bool,
    keep: int | None,
    overwrite: bool,
    key_file: Path | None,
    as_json: bool,
) -> None:
    """Write all jobs, keys, file references, power records and usage to FILE, while the installation runs.

    If FILE is a folder, the file in it is named after the time. FILE contains secrets: protect it as you protect a key,
    or encrypt it with --key-file. Exit code 3 if the broker cannot be reached, 4 if there is nothing to back up, 1 if
    FILE cannot be written.
    """
    try:
        secret = read_key_file(key_file) if key_file else None
        where = select_target(data, config)
        chosen = choose_file(file, utc_now(), keep=keep, encrypted=secret is not None, overwrite=overwrite)
        bar = progress_bar(quiet=as_json)
        manifest = asyncio.run(_write_backup(where, chosen, secret, bar, assets=assets, make_folder=keep is not None))
        removed = remove_old_backups(file, keep) if keep is not None else []
        summary = summarize(manifest, chosen, removed)
    except (BusError, BackupRefused, BackupExists, KeyFileUnusable, StoreError, OSError) as error:
        exit_with_error(error, as_json=as_json)
    else:
        print_summary(summary, "backed up", "to", as_json=as_json)


@backup.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@key_file_option
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def verify(file: Path, key_file: Path | None, as_json: bool) -> None:
    """Read all of FILE and compare each part with its digest. Nothing is restored.

    Exit code 4 if FILE is damaged, 2 if the key is missing or wrong.
    """
    try:
        with open_archive(file, read_key_file(key_file) if key_file else None) as reader:
            reader.verify()
            summary = summarize(reader.manifest, file)
    except (BackupUnusable, KeyFileUnusable, OSError) as error:
        exit_with_error(error, as_json=as_json)
    else:
        print_summary(summary, "verified", "in", as_json=as_json)


# `backup --assets FILE` is `backup write --assets FILE`.
backup.params.extend(parameter for parameter in write.params if isinstance(parameter, click.Option))


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
