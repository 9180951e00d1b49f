"""`backup` and `restore` against a broker that a settings file names, and files that are not what they should be."""

import json
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from bus.connection import open_edge
from bus.port import Bus
from edge.store.directory import open_directory
from lamplighter.cli.backup_file import FORMAT, MANIFEST, Manifest, Part, Unusable, reading, writing
from schemas.asset import Reference, reference_key
from tests.backup.place import installed, lamplighter
from tests.broker import Broker, broker
from tests.bus.samples import NOW, key, recorded

CONTENT = b"the bytes of a file" * 1000


class There(NamedTuple):
    """An installation without processes: its broker, its store, and the settings that name both."""

    broker: Broker
    bus: Bus
    config: Path
    store: Path


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[There]:
    folder = tmp_path / "there"
    folder.mkdir()
    async with broker(folder) as server, open_edge(server.settings("edge")) as bus:
        config = installed(folder, server.settings("edge"))
        await bus.records.create(key(), recorded())
        async with open_directory(folder / "assets") as store:

            async def chunks() -> AsyncIterator[bytes]:
                yield CONTENT

            stored = await store.write(chunks(), None, len(CONTENT))
        reference = Reference("a.bin", len(CONTENT), "application/octet-stream", NOW, NOW)
        await bus.assets.put(reference_key("me", stored.sha256), reference)
        yield There(server, bus, config, folder / "assets")


async def test_what_a_settings_file_names_is_kept_and_put_elsewhere(there: There, tmp_path: Path):
    file, elsewhere = tmp_path / "kept.zip", tmp_path / "elsewhere"
    elsewhere.mkdir()
    kept = await lamplighter("backup", file, "--config", there.config, "--assets", "--json")
    assert kept.returncode == 0, kept.stderr
    assert {name: json.loads(kept.stdout)[name] for name in ("jobs", "assets")} == {"jobs": 1, "assets": 1}
    async with broker(elsewhere) as server:
        config = installed(elsewhere, server.settings("edge"))
        done = await lamplighter("restore", file, "--config", config)
        assert (done.returncode, "restored 1 job, 1 file (" in done.stdout) == (0, True), done.stderr
        async with open_edge(server.settings("edge")) as bus:
            assert (await bus.records.read(key())).recorded == recorded()
            (reference,) = await bus.assets.rows()
            agreed = await bus.agreed.get("store")
        async with open_directory(elsewhere / "assets") as store:
            assert b"".join([block async for block in store.read(reference.rpartition(".")[2])]) == CONTENT
            assert agreed.value.value == (await store.survey()).fingerprint
        again = await lamplighter("restore", file, "--config", config)
        assert (again.returncode, "not empty" in again.stderr) == (4, True)
        replaced = await lamplighter("restore", file, "--config", config, "--replace", "--json")
        assert replaced.returncode == 0, replaced.stderr


async def test_an_edge_at_work_is_not_written_over(there: There, tmp_path: Path):
    file = tmp_path / "kept.zip"
    assert (await lamplighter("backup", file, "--config", there.config)).returncode == 0
    changes = there.bus.records.changes()
    await anext(changes)
    done = await lamplighter("restore", file, "--config", there.config, "--replace")
    assert (done.returncode, "stop every edge first" in done.stderr) == (4, True)
    assert await there.bus.records.read(key()) is not None
    await changes.aclose()


async def test_no_broker_is_exit_3_and_an_empty_one_is_exit_4(tmp_path: Path):
    async with broker(tmp_path) as server:
        config = installed(tmp_path, server.settings("edge"))
        empty = await lamplighter("backup", tmp_path / "kept.zip", "--config", config)
        assert (empty.returncode, "nothing to back up" in empty.stderr) == (4, True)
    away = await lamplighter("backup", tmp_path / "kept.zip", "--config", config)
    assert (away.returncode, len(away.stderr.splitlines())) == (3, 1)
    assert not (tmp_path / "kept.zip").exists()


async def test_a_place_that_cannot_be_written_is_exit_1_and_keeps_what_was_there(there: There, tmp_path: Path):
    done = await lamplighter("backup", tmp_path / "nowhere" / "kept.zip", "--config", there.config)
    assert (done.returncode, "nowhere" in done.stderr, "Traceback" in done.stderr) == (1, True, False)


def written(file: Path, change: Callable[[Manifest], object] = lambda manifest: manifest) -> Path:
    """A small backup whose manifest says what `change` makes of it."""
    with writing(file) as writer:
        member = writer.begin("files/installation")
        member.write(b'"an id"')
        part = member.close()
        manifest = Manifest(format=FORMAT, release="1", made_at=NOW, streams=(), files=(part,))
        with zipfile.ZipFile.open(writer._archive, MANIFEST, "w") as sink:
            sink.write(msgspec.json.encode(change(manifest)))
    return file


def test_a_file_is_whole_private_and_checked(tmp_path: Path):
    file = written(tmp_path / "kept.zip")
    assert file.stat().st_mode & 0o777 == 0o600
    with reading(file) as reader:
        reader.verify()
        (part,) = reader.manifest.files
        assert b"".join(reader.blocks(part)) == b'"an id"'


def test_a_file_that_could_not_be_written_whole_leaves_the_one_before(tmp_path: Path):
    file = written(tmp_path / "kept.zip")
    before = file.read_bytes()
    with pytest.raises(OSError, match="full"):
        _break_off(file)
    assert (file.read_bytes(), list(tmp_path.iterdir())) == (before, [file])


def _break_off(file: Path) -> None:
    with writing(file) as writer:
        writer.begin("files/x").write(b"half")
        raise OSError("the disk is full")


def damaged(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[data.index(b'"an id"')] ^= 1
    file.write_bytes(data)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def another(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("hello", "world")


@pytest.mark.parametrize(
    ("spoil", "said"), [(damaged, "damaged"), (cut_short, "no backup"), (another, "no backup of Lamplighter's")]
)
def test_a_spoiled_file_is_refused_before_anything_is_done(spoil: Callable[[Path], None], said: str, tmp_path: Path):
    file = written(tmp_path / "kept.zip")
    spoil(file)
    with pytest.raises(Unusable, match=said), reading(file) as reader:
        reader.verify()


def test_a_newer_format_is_refused_by_name_and_new_fields_are_not(tmp_path: Path):
    def newer(manifest: Manifest) -> object:
        return {"format": FORMAT + 1, "release": "9.9", "streams": "of another shape"}

    def more(manifest: Manifest) -> object:
        return msgspec.to_builtins(manifest) | {"of_the_future": 1}

    with pytest.raises(Unusable, match=r"release 9\.9"), reading(written(tmp_path / "newer.zip", newer)):
        """It does not come so far."""
    with reading(written(tmp_path / "more.zip", more)) as reader:
        assert reader.manifest.format == FORMAT


async def test_a_part_that_names_a_place_outside_the_data_folder_is_not_written(there: There, tmp_path: Path):
    def outside(manifest: Manifest) -> object:
        return msgspec.structs.replace(manifest, files=(*manifest.files, Part("files/../../outside", 0, "")))

    file = written(tmp_path / "kept.zip", outside)
    (tmp_path / "new").mkdir()
    async with broker(tmp_path / "new") as server:
        config = installed(tmp_path / "new", server.settings("edge"))
        done = await lamplighter("restore", file, "--config", config)
    assert done.returncode == 4
    assert not (tmp_path / "outside").exists()
