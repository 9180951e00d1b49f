"""`lamplighter restore`: an installation out of a backup, into an empty place."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import click
from anyio import to_thread
from rich.progress import Progress

from bus.backup import Snapshots
from bus.connection import open_keeper
from bus.port import Bus, BusError
from bus.private import write_private
from edge.services.agreed import agree_on_store
from edge.services.clock import utc_now
from edge.store.opening import open_store
from edge.store.port import StoreError
from lamplighter.cli import show
from lamplighter.cli.backup import progress, say
from lamplighter.cli.backup_file import ASSETS, FILES, Manifest, Part, Reader, Unusable, reading
from lamplighter.cli.backup_place import Chosen, Place, Refusal, chosen, leave, place_options


async def _pieces(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """What a thread reads."""
    while (block := await to_thread.run_sync(next, blocks, None)) is not None:
        yield block


class Giving:
    """One backup on its way back."""

    def __init__(self, place: Place, reader: Reader, bar: Progress) -> None:
        self._place = place
        self._reader = reader
        self._bar = bar
        self._task = bar.add_task("restoring", total=len(reader.manifest.parts))

    async def all(self, bus: Bus, snapshots: Snapshots) -> None:
        """Files first: without them hosts that had joined would not know this installation again."""
        manifest = self._reader.manifest
        for part in manifest.files:
            await to_thread.run_sync(self._file, part)
        for kept in manifest.streams:
            await snapshots.put(kept.snapshot, _pieces(self._reader.blocks(kept.part)), self._place.broker.replicas)
            self._bar.advance(self._task)
        if manifest.assets is not None:
            await self._assets(bus, manifest.assets)

    def _file(self, part: Part) -> None:
        path = (self._place.data / part.name.removeprefix(FILES)).resolve()
        if not path.is_relative_to(self._place.data.resolve()):
            raise Unusable(f"{part.name} of the backup lies outside the data folder: somebody has changed the file")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, b"".join(self._reader.blocks(part)))
        self._bar.advance(self._task)

    async def _assets(self, bus: Bus, parts: tuple[Part, ...]) -> None:
        """Into the store that is there now, which from now on is the installation's."""
        async with open_store(self._place.store, self._place.assets) as store:
            for part in parts:
                await store.write(_pieces(self._reader.blocks(part)), part.name.removeprefix(ASSETS), part.bytes)
                self._bar.advance(self._task)
            await agree_on_store(bus.agreed, (await store.survey()).fingerprint, utc_now, replace=True)


async def _empty(snapshots: Snapshots, *, replace: bool) -> None:
    """Make room, or raise Refusal where that would take something from somebody."""
    if await snapshots.at_work():
        raise Refusal("an edge is at work at this broker: stop every edge first")
    held = sum((await snapshots.held()).values())
    if held and not replace:
        raise Refusal(
            f"this installation is not empty ({show.counted(held, 'message')}): restore into a new one, or give "
            "--replace to lose what is there"
        )
    await snapshots.clear()


async def _run(where: Chosen, file: Path, bar: Progress, *, replace: bool) -> Manifest:
    with reading(file) as reader:
        await to_thread.run_sync(reader.verify)
        async with where.opened(stopped=True) as place, open_keeper(place.broker) as (bus, snapshots):
            await _empty(snapshots, replace=replace)
            with bar:
                await Giving(place, reader, bar).all(bus, snapshots)
        return reader.manifest


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@place_options
@click.option("--replace", is_flag=True, help="Lose what is there now.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON, and no progress.")
def restore(file: Path, data: Path, config: Path | None, replace: bool, as_json: bool) -> None:
    """Put the installation that FILE is a backup of into an empty place. No edge may run there meanwhile.

    What was running is settled by the usual law once the edge is up. Exit 3 when the broker cannot be reached, 4 when
    FILE is damaged or the place is not empty, 1 when something cannot be written: then do it again with --replace.
    """
    try:
        manifest = asyncio.run(_run(chosen(data, config), file, progress(quiet=as_json), replace=replace))
    except (BusError, Refusal, Unusable, StoreError, OSError) as error:
        leave(error, as_json=as_json)
    else:
        say(manifest, file, "restored", as_json=as_json)
