"""`backup` and `restore` against a broker that a settings file names, and files that are not what they should be."""

import json
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from bus.interface import Bus
from bus.open import open_edge
from edge.store.directory import open_directory
from lamplighter.cli.backup_archive import (
    FORMAT_VERSION,
    MANIFEST,
    ArchivePart,
    BackupManifest,
    BackupUnusable,
    create_archive,
    open_archive,
)
from schemas.asset import AssetReference, reference_key
from tests.support.bus_samples import NOW, make_key, make_record
from tests.support.command import run_lamplighter, write_settings
from tests.support.nats_broker import BrokerProcess, run_broker

CONTENT = b"the bytes of a file" * 1000


class There(NamedTuple):
    """An installation without processes: its broker, its store, and the settings that name both."""

    broker: BrokerProcess
    bus: Bus
    config: Path
    store: Path


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[There]:
    folder = tmp_path / "there"
    folder.mkdir()
    async with run_broker(folder) as server, open_edge(server.settings("edge")) as bus:
        config = write_settings(folder, server.settings("edge"))
        await bus.job_store.create(make_key(), make_record())
        async with open_directory(folder / "assets") as store:

            async def chunks() -> AsyncIterator[bytes]:
                yield CONTENT

            stored = await store.write(chunks(), None, len(CONTENT))
        reference = AssetReference("a.bin", len(CONTENT), "application/octet-stream", NOW, NOW)
        await bus.asset_references.put(reference_key("me", stored.sha256), reference)
        yield There(server, bus, config, folder / "assets")


async def test_what_a_settings_file_names_is_kept_and_put_elsewhere(there: There, tmp_path: Path):
    file, elsewhere = tmp_path / "kept.zip", tmp_path / "elsewhere"
    elsewhere.mkdir()
    kept = await run_lamplighter("backup", file, "--config", there.config, "--assets", "--json")
    assert kept.returncode == 0, kept.stderr
    assert {name: json.loads(kept.stdout)[name] for name in ("jobs", "assets")} == {"jobs": 1, "assets": 1}
    async with run_broker(elsewhere) as server:
        config = write_settings(elsewhere, server.settings("edge"))
        done = await run_lamplighter("restore", file, "--config", config)
        assert (done.returncode, "restored 1 job, 1 file (" in done.stdout) == (0, True), done.stderr
        async with open_edge(server.settings("edge")) as bus:
            assert (await bus.job_store.read(make_key())).record == make_record()
            (reference,) = await bus.asset_references.rows()
            agreed = await bus.installation_constants.get("store")
        async with open_directory(elsewhere / "assets") as store:
            assert b"".join([block async for block in store.read(reference.rpartition(".")[2])]) == CONTENT
            assert agreed.value.value == (await store.survey()).fingerprint
        again = await run_lamplighter("restore", file, "--config", config)
        assert (again.returncode, "not empty" in again.stderr) == (4, True)
        replaced = await run_lamplighter("restore", file, "--config", config, "--replace", "--json")
        assert replaced.returncode == 0, replaced.stderr


async def test_an_encrypted_backup_is_verified_and_restored_with_its_key_alone(there: There, tmp_path: Path):
    file, key, other = tmp_path / "kept.zip.enc", tmp_path / "key", tmp_path / "other"
    key.write_text("a key of enough characters\n")
    other.write_text("another key of enough characters\n")
    kept = await run_lamplighter("backup", file, "--config", there.config, "--assets", "--key-file", key)
    assert (kept.returncode, f", encrypted) to {file}" in kept.stdout) == (0, True), kept.stderr
    assert CONTENT[:30] not in file.read_bytes()
    assert (await run_lamplighter("backup", "verify", file, "--key-file", key)).returncode == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    async with run_broker(elsewhere) as server:
        config = write_settings(elsewhere, server.settings("edge"))
        for words, said in (((), "is encrypted: give the key file"), (("--key-file", other), "another key")):
            for verb in (("backup", "verify", file), ("restore", file, "--config", config)):
                done = await run_lamplighter(*verb, *words)
                assert (done.returncode, said in done.stderr, len(done.stderr.splitlines())) == (2, True, 1)
        done = await run_lamplighter("restore", file, "--config", config, "--key-file", key)
        assert (done.returncode, "restored 1 job, 1 file (" in done.stdout) == (0, True), done.stderr


async def test_a_backup_is_not_written_over_and_its_file_is_named(there: There, tmp_path: Path):
    file = tmp_path / "kept.zip"
    words = ("backup", file, "--config", there.config)
    kept = await run_lamplighter(*words)
    assert kept.stdout.endswith(f" to {file}\n")
    before = file.read_bytes()
    again = await run_lamplighter(*words)
    assert (again.returncode, again.stderr) == (
        2,
        f"lamplighter: {file} exists: choose another name, or give --overwrite\n",
    )
    assert file.read_bytes() == before
    assert (await run_lamplighter(*words, "--overwrite")).returncode == 0


async def test_a_folder_keeps_so_many_backups_and_all_other_files(there: There, tmp_path: Path):
    folder = tmp_path / "backups"
    missing = await run_lamplighter("backup", folder, "--keep", "2", "--data", tmp_path / "mistyped")
    assert (missing.returncode, folder.exists()) == (4, False)
    folder.mkdir()
    old = [folder / f"lamplighter-2020010{day}T000000Z.zip" for day in (1, 2, 3)]
    others = [folder / name for name in ("notes.txt", "lamplighter-mine.zip", "lamplighter-20200101T000000Z.zip.part")]
    for path in (*old, *others):
        path.write_text("")
    done = await run_lamplighter("backup", folder, "--keep", "2", "--config", there.config, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    made = Path(said["file"])
    assert said["removed"] == [str(path) for path in old[:2]]
    assert {*folder.iterdir()} == {made, old[2], *others}
    checked = await run_lamplighter("backup", "verify", made)
    assert (checked.returncode, checked.stdout.startswith("verified 1 job, ")) == (0, True), checked.stderr
    named = await run_lamplighter("backup", made, "--keep", "2", "--config", there.config)
    assert (named.returncode, "--keep needs a folder" in named.stderr) == (2, True)


async def test_verify_names_the_part_that_is_damaged(there: There, tmp_path: Path):
    file = tmp_path / "kept.zip"
    assert (await run_lamplighter("backup", file, "--config", there.config, "--assets")).returncode == 0
    data = file.read_bytes()
    place = data.index(CONTENT[:100])
    file.write_bytes(data[:place] + b"X" + data[place + 1 :])
    done = await run_lamplighter("backup", "verify", file)
    assert (done.returncode, "in the backup is damaged" in done.stderr, "assets/" in done.stderr) == (4, True, True)


async def test_an_edge_at_work_is_not_written_over(there: There, tmp_path: Path):
    file = tmp_path / "kept.zip"
    assert (await run_lamplighter("backup", file, "--config", there.config)).returncode == 0
    changes = there.bus.job_store.changes()
    await anext(changes)
    done = await run_lamplighter("restore", file, "--config", there.config, "--replace")
    assert (done.returncode, "stop every edge first" in done.stderr) == (4, True)
    assert await there.bus.job_store.read(make_key()) is not None
    await changes.aclose()  # type: ignore[attr-defined]


async def test_no_broker_is_exit_3_and_an_empty_one_is_exit_4(tmp_path: Path):
    async with run_broker(tmp_path) as server:
        config = write_settings(tmp_path, server.settings("edge"))
        empty = await run_lamplighter("backup", tmp_path / "kept.zip", "--config", config)
        assert (empty.returncode, "nothing to back up" in empty.stderr) == (4, True)
    away = await run_lamplighter("backup", tmp_path / "kept.zip", "--config", config)
    assert (away.returncode, len(away.stderr.splitlines())) == (3, 1)
    assert not (tmp_path / "kept.zip").exists()


async def test_a_place_that_cannot_be_written_is_exit_1_and_keeps_what_was_there(there: There, tmp_path: Path):
    done = await run_lamplighter("backup", tmp_path / "nowhere" / "kept.zip", "--config", there.config)
    assert (done.returncode, "nowhere" in done.stderr, "Traceback" in done.stderr) == (1, True, False)


def written(file: Path, change: Callable[[BackupManifest], object] = lambda manifest: manifest) -> Path:
    """A small backup whose manifest says what `change` makes of it."""
    with create_archive(file) as writer:
        member = writer.start_part("files/installation")
        member.write(b'"an id"')
        part = member.close()
        manifest = BackupManifest(format=FORMAT_VERSION, release="1", made_at=NOW, streams=(), files=(part,))
        with zipfile.ZipFile.open(writer._archive, MANIFEST, "w") as sink:
            sink.write(msgspec.json.encode(change(manifest)))
    return file


def test_a_file_is_whole_private_and_checked(tmp_path: Path):
    file = written(tmp_path / "kept.zip")
    assert file.stat().st_mode & 0o777 == 0o600
    with open_archive(file) as reader:
        reader.verify()
        (part,) = reader.manifest.files
        assert b"".join(reader.read_blocks(part)) == b'"an id"'


def test_a_file_that_could_not_be_written_whole_leaves_the_one_before(tmp_path: Path):
    file = written(tmp_path / "kept.zip")
    before = file.read_bytes()
    with pytest.raises(OSError, match="full"):
        _break_off(file)
    assert (file.read_bytes(), list(tmp_path.iterdir())) == (before, [file])


def _break_off(file: Path) -> None:
    with create_archive(file) as writer:
        writer.start_part("files/x").write(b"half")
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
    ("spoil", "said"), [(damaged, "damaged"), (cut_short, "not a backup"), (another, "not a backup of Lamplighter")]
)
def test_a_spoiled_file_is_refused_before_anything_is_done(spoil: Callable[[Path], None], said: str, tmp_path: Path):
    file = written(tmp_path / "kept.zip")
    spoil(file)
    with pytest.raises(BackupUnusable, match=said), open_archive(file) as reader:
        reader.verify()


def test_a_newer_format_is_refused_by_name_and_new_fields_are_not(tmp_path: Path):
    def newer(manifest: BackupManifest) -> object:
        return {"format": FORMAT_VERSION + 1, "release": "9.9", "streams": "of another shape"}

    def more(manifest: BackupManifest) -> object:
        return msgspec.to_builtins(manifest) | {"of_the_future": 1}

    with pytest.raises(BackupUnusable, match=r"release 9\.9"), open_archive(written(tmp_path / "newer.zip", newer)):
        """It does not come so far."""
    with open_archive(written(tmp_path / "more.zip", more)) as reader:
        assert reader.manifest.format == FORMAT_VERSION


async def test_a_part_that_names_a_place_outside_the_data_folder_is_not_written(there: There, tmp_path: Path):
    def outside(manifest: BackupManifest) -> object:
        return msgspec.structs.replace(manifest, files=(*manifest.files, ArchivePart("files/../../outside", 0, "")))

    file = written(tmp_path / "kept.zip", outside)
    (tmp_path / "new").mkdir()
    async with run_broker(tmp_path / "new") as server:
        config = write_settings(tmp_path / "new", server.settings("edge"))
        done = await run_lamplighter("restore", file, "--config", config)
    assert done.returncode == 4
    assert not (tmp_path / "outside").exists()
