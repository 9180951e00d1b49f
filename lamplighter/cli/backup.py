"""`lamplighter backup`: everything that an installation could not get back by itself, in one file, while it works."""

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

from bus.backup import KEPT, Snapshots
from bus.connection import open_keeper
from bus.port import Bus, BusError
from edge.services.clock import utc_now
from edge.store.opening import open_store
from edge.store.port import AssetStore, StoreError
from lamplighter.cli import show
from lamplighter.cli.backup_file import ASSETS, FILES, FORMAT, STREAMS, Kept, Manifest, Part, Writer, writing
from lamplighter.cli.backup_place import Chosen, Place, Refusal, chosen, leave, place_options
from schemas.version import VERSION


def progress(*, quiet: bool) -> Progress:
    """A bar on stderr, where a person looks on."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)


class Taking:
    """One backup on its way into its file."""

    def __init__(self, place: Place, writer: Writer, bar: Progress) -> None:
        self._place = place
        self._writer = writer
        self._bar = bar
        self._task = bar.add_task("streams", total=len(KEPT))

    async def all(self, bus: Bus, snapshots: Snapshots, store: AssetStore | None) -> Manifest:
        """The streams, the files, and of the assets, if `store` is given, those that the streams name."""
        streams = tuple([await self._stream(snapshots, name) for name in KEPT])
        assets = None if store is None else await self._assets(bus, store)
        manifest = Manifest(
            format=FORMAT,
            release=VERSION,
            made_at=utc_now(),
            streams=streams,
            files=await to_thread.run_sync(self._files),
            assets=assets,
        )
        await to_thread.run_sync(self._writer.end, manifest)
        return manifest

    async def _stream(self, snapshots: Snapshots, name: str) -> Kept:
        member = await to_thread.run_sync(self._writer.begin, f"{STREAMS}{name}")

        async def write(chunk: bytes) -> None:
            await to_thread.run_sync(member.write, chunk)

        snapshot = await snapshots.take(name, write)
        part = await to_thread.run_sync(member.close)
        self._bar.advance(self._task)
        return Kept(snapshot, part)

    async def _assets(self, bus: Bus, store: AssetStore) -> tuple[Part, ...]:
        digests = sorted({key.rpartition(".")[2] for key in await bus.assets.rows()})
        self._bar.update(self._task, description="assets", total=len(KEPT) + len(digests))
        return tuple([part for digest in digests if (part := await self._asset(store, digest))])

    async def _asset(self, store: AssetStore, digest: str) -> Part | None:
        """None for one that was deleted meanwhile."""
        self._bar.advance(self._task)
        if await store.stat(digest) is None:
            return None
        member = await to_thread.run_sync(self._writer.begin, f"{ASSETS}{digest}")
        async for block in store.read(digest):
            await to_thread.run_sync(member.write, block)
        return await to_thread.run_sync(member.close)

    def _files(self) -> tuple[Part, ...]:
        found = (path for pattern in self._place.patterns for path in sorted(self._place.data.glob(pattern)))
        return tuple(self._file(path) for path in found if path.is_file())

    def _file(self, path: Path) -> Part:
        member = self._writer.begin(f"{FILES}{path.relative_to(self._place.data)}")
        member.write(path.read_bytes())
        return member.close()


@asynccontextmanager
async def _sources(place: Place, *, assets: bool) -> AsyncIterator[tuple[Bus, Snapshots, AssetStore | None]]:
    async with AsyncExitStack() as opened:
        bus, snapshots = await opened.enter_async_context(open_keeper(place.broker))
        if not await snapshots.held():
            raise Refusal("there is nothing to back up: no edge has been at this broker yet")
        store = await opened.enter_async_context(open_store(place.store, place.assets)) if assets else None
        yield bus, snapshots, store


async def _run(where: Chosen, file: Path, bar: Progress, *, assets: bool) -> Manifest:
    async with where.opened(stopped=False) as place, _sources(place, assets=assets) as (bus, snapshots, store):
        with writing(file) as writer, bar:
            return await Taking(place, writer, bar).all(bus, snapshots, store)


def told(manifest: Manifest, file: Path) -> dict[str, object]:
    """What `--json` prints."""
    return {
        "file": str(file),
        "made_at": manifest.made_at,
        "release": manifest.release,
        "jobs": manifest.jobs,
        "assets": None if manifest.assets is None else len(manifest.assets),
        "bytes": sum(part.bytes for part in manifest.parts),
    }


def say(manifest: Manifest, file: Path, verb: str, *, as_json: bool) -> None:
    """What was done, on stdout."""
    facts = told(manifest, file)
    if as_json:
        sys.stdout.write(msgspec.json.encode(facts).decode() + "\n")
        return
    jobs = show.counted(manifest.jobs, "job")
    assets = "without the files' bytes" if manifest.assets is None else show.counted(len(manifest.assets), "file")
    click.echo(f"{verb} {jobs}, {assets} ({facts['bytes']} bytes, of {manifest.made_at:%Y-%m-%d %H:%M})")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@place_options
@click.option("--assets", is_flag=True, help="The bytes of all files too. Leave it out where the store is a bucket.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON, and no progress.")
def backup(file: Path, data: Path, config: Path | None, assets: bool, as_json: bool) -> None:
    """Write all jobs, keys, file references, power records and bills to FILE, while everything goes on.

    FILE holds secrets: keep it as you keep a key. Exit 3 when the broker cannot be reached, 4 when there is nothing to
    back up, 1 when FILE cannot be written.
    """
    try:
        manifest = asyncio.run(_run(chosen(data, config), file, progress(quiet=as_json), assets=assets))
    except (BusError, Refusal, StoreError, OSError) as error:
        leave(error, as_json=as_json)
    else:
        say(manifest, file, "kept", as_json=as_json)
