"""Secrets at the edge: whose value a job gets, what is refused, and what happens with another key file."""

import base64
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.interface import Table
from bus.secret_files import atomic_write
from edge.owners import secret_keys
from edge.owners.secret_keys import KEY_BYTES, SecretKeyFile, SecretKeysUnusable, read_or_make_keys
from edge.owners.secrets import OLD_KEY_KEPT_S, SecretStore
from schemas.endpoint import Endpoint, Reuse
from schemas.endpoint_parts import OWNER_SECRETS_LIMIT, StoredSecret
from schemas.problems import ProblemError
from tests.support.edge_services import FakeBusServicesRig, ManualClock
from tests.support.fake_bus.broker import FakeBroker

TTS = Endpoint(name="tts", image="tts", secrets=("HF_TOKEN",))
VALUE = "hf_the-value-of-ann"


def make_store(folder: Path, broker: FakeBroker, name: str = "secrets.key") -> SecretStore:
    return SecretStore(broker.connect().secrets, SecretKeyFile(folder / name), ManualClock())


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


@pytest.fixture
def store(tmp_path: Path, broker: FakeBroker) -> SecretStore:
    return make_store(tmp_path, broker)


async def test_a_job_gets_its_owners_secret_before_that_of_the_installation(store: SecretStore) -> None:
    await store.set(None, "HF_TOKEN", "of the installation", "admin")
    assert await store.open_for_job(TTS, "ann") == {"HF_TOKEN": "of the installation"}
    await store.set("ann", "HF_TOKEN", VALUE, "k1")
    assert await store.open_for_job(TTS, "ann") == {"HF_TOKEN": VALUE}
    assert await store.open_for_job(TTS, "bob") == {"HF_TOKEN": "of the installation"}
    await store.delete("ann", "HF_TOKEN")
    assert await store.open_for_job(TTS, "ann") == {"HF_TOKEN": "of the installation"}


async def test_an_endpoint_that_shares_containers_gets_no_secret_of_an_owner(store: SecretStore) -> None:
    shared = msgspec.structs.replace(TTS, reuse=Reuse(scope="endpoint"))
    await store.set("ann", "HF_TOKEN", VALUE, "k1")
    with pytest.raises(ProblemError, match="secrets set NAME --installation"):
        await store.check_present(shared, "ann")
    await store.set(None, "HF_TOKEN", "of the installation", "admin")
    assert await store.open_for_job(shared, "ann") == {"HF_TOKEN": "of the installation"}
    kept = msgspec.structs.replace(TTS, reuse=Reuse(scope="owner"))
    assert await store.open_for_job(kept, "ann") == {"HF_TOKEN": VALUE}


async def test_missing_secrets_are_all_named(store: SecretStore) -> None:
    wants = msgspec.structs.replace(TTS, secrets=("A_KEY", "HF_TOKEN", "B_KEY", "A_KEY"))
    await store.set("ann", "HF_TOKEN", VALUE, "k1")
    for ask in (store.check_present, store.open_for_job):
        with pytest.raises(ProblemError, match=r"tts needs .* \(A_KEY, B_KEY\): lamplighter secrets set") as refused:
            await ask(wants, "ann")
        assert refused.value.code == "secret_missing"


async def test_no_row_has_the_value_and_a_moved_row_opens_nothing(store: SecretStore, broker: FakeBroker) -> None:
    await store.set("ann", "HF_TOKEN", VALUE, "k1")
    table = broker.connect().secrets
    (key,) = await table.keys()
    row = await table.get(key)
    assert row is not None
    stored = msgspec.json.encode(row.value)
    assert VALUE.encode() not in stored
    assert base64.b64encode(VALUE.encode()) not in stored
    await table.put("owner.bob.HF_TOKEN", row.value)
    with pytest.raises(ProblemError, match="the stored bytes are damaged") as refused:
        await store.open_for_job(TTS, "bob")
    assert refused.value.code == "unavailable"


async def test_with_another_key_file_secrets_are_refused_and_not_garbled(
    store: SecretStore, tmp_path: Path, broker: FakeBroker
) -> None:
    await store.set("ann", "HF_TOKEN", VALUE, "k1")
    other = make_store(tmp_path, broker, "other.key")
    with pytest.raises(ProblemError, match=r"\[secrets\] key_file.* does not have it: copy that file"):
        await other.open_for_job(TTS, "ann")
    with pytest.raises(ProblemError, match="this edge cannot store secrets"):
        await other.set("bob", "HF_TOKEN", "another value", "k2")
    (fault,) = other.faults
    assert "1 secrets cannot be read by this edge" in fault
    assert "HF_TOKEN" not in fault, "everybody may read /readyz"
    await other.delete("ann", "HF_TOKEN")
    await other.set("bob", "HF_TOKEN", "another value", "k2")
    assert other.faults == ()


async def test_a_new_first_key_seals_what_the_old_one_sealed(
    store: SecretStore, tmp_path: Path, broker: FakeBroker
) -> None:
    await store.set("ann", "HF_TOKEN", VALUE, "k1")
    file = tmp_path / "secrets.key"
    old, new = file.read_text(), base64.b64encode(os.urandom(KEY_BYTES)).decode()
    file.write_text(f"{new}\n{old}")
    (before,) = await store.list("ann")
    await make_store(tmp_path, broker).check_keys()
    file.write_text(new)
    alone = make_store(tmp_path, broker)
    assert await alone.open_for_job(TTS, "ann") == {"HF_TOKEN": VALUE}
    assert await alone.list("ann") == [before]


async def fill(store: SecretStore) -> None:
    for owner in ("ann", "bob", None):
        await store.set(owner, "HF_TOKEN", f"hf_the-value-of-{owner}", "k1")


async def read_all(store: SecretStore) -> list[str]:
    found = [*(await store.open_for_job(TTS, "ann")).values(), *(await store.open_for_job(TTS, "bob")).values()]
    return [*found, *(await store.open_for_job(TTS, "nobody")).values()]


ALL = ["hf_the-value-of-ann", "hf_the-value-of-bob", "hf_the-value-of-None"]


def let_a_minute_pass(file: Path) -> None:
    """Date the key file as if it had not changed for so long, by the clock of the stores."""
    at = ManualClock()().timestamp() - OLD_KEY_KEPT_S
    os.utime(file, (at, at))


async def test_a_key_is_replaced_and_the_old_one_removed_later(
    store: SecretStore, tmp_path: Path, broker: FakeBroker
) -> None:
    await fill(store)
    file = tmp_path / "secrets.key"
    old = read_or_make_keys(file).sealing_id
    facts = await store.rotate_key()
    assert (facts.old_key_ids, facts.sealed, facts.file) == ((old,), 3, str(file))
    assert facts.key_id != old
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = await store.rotate_key()
    assert again == facts, "a rotation that is not finished is continued"
    os.utime(file)
    with pytest.raises(ProblemError, match="another edge may still use the old key") as refused:
        await store.finish_rotation()
    assert refused.value.retry_after_s
    let_a_minute_pass(file)
    done = await store.finish_rotation()
    assert (done.key_id, done.old_key_ids, done.sealed) == (facts.key_id, (), 3)
    assert await store.finish_rotation() == done
    assert read_or_make_keys(file).old_ids == ()
    assert await read_all(make_store(tmp_path, broker)) == await read_all(store) == ALL


class DyingTable:
    """The table of an edge that is killed at its write number `at`."""

    def __init__(self, table: Table[StoredSecret], at: int) -> None:
        self._table, self._left = table, at

    def __getattr__(self, name: str) -> Any:
        if name in {"put", "create", "update"}:
            self._left -= 1
            if not self._left:
                raise Killed
        return getattr(self._table, name)


class Killed(BaseException):
    """What a test raises in place of SIGKILL: nothing catches it."""


@pytest.mark.parametrize(
    "step", ["before the file", "after the file", "write 1", "write 2", "write 3", "before the end"]
)
async def test_an_edge_that_is_killed_while_it_replaces_the_key_loses_nothing(
    tmp_path: Path, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    await fill(make_store(tmp_path, broker))
    file = tmp_path / "secrets.key"
    old = read_or_make_keys(file).sealing_id
    other = make_store(tmp_path, broker)  # of an edge that shares the file and has read it before
    table: Any = DyingTable(broker.connect().secrets, int(step[-1]) if step.startswith("write") else 0)
    dying = SecretStore(table, SecretKeyFile(file), ManualClock())

    def die(path: Path, text: str) -> None:
        if step != "before the file":
            atomic_write(path, text)
        raise Killed

    with monkeypatch.context() as patch, suppress(Killed):
        if step == "before the end":
            await dying.rotate_key()
            let_a_minute_pass(file)
        if not step.startswith("write"):
            patch.setattr(secret_keys, "atomic_write", die)
        await (dying.finish_rotation() if step == "before the end" else dying.rotate_key())
        pytest.fail("nothing killed it")
    assert await read_all(other) == ALL
    assert await read_all(make_store(tmp_path, broker)) == ALL
    next_edge = make_store(tmp_path, broker)
    facts = await next_edge.rotate_key()
    let_a_minute_pass(file)
    assert (await next_edge.finish_rotation()).old_key_ids == ()
    assert old not in {facts.key_id, *read_or_make_keys(file)._ciphers}
    assert facts.sealed == 3
    assert await read_all(other) == await read_all(next_edge) == ALL


async def test_an_edge_with_a_key_file_of_its_own_goes_on_after_a_copy_without_a_restart(
    store: SecretStore, tmp_path: Path, broker: FakeBroker
) -> None:
    await fill(store)
    file, copied = tmp_path / "secrets.key", tmp_path / "copied.key"
    copied.write_bytes(file.read_bytes())
    other = make_store(tmp_path, broker, "copied.key")
    await store.rotate_key()
    with pytest.raises(ProblemError, match="copy that file from an edge that can read them") as refused:
        await other.open_for_job(TTS, "ann")
    assert refused.value.code == "unavailable", "the job waits"
    with pytest.raises(ProblemError, match="this edge cannot store secrets"):
        await other.set("ann", "HF_TOKEN", "another value", "k1")
    with pytest.raises(ProblemError, match="this edge cannot store secrets"):
        await other.rotate_key()
    copied.write_bytes(file.read_bytes())
    assert await read_all(other) == ALL
    await other.check_keys()
    assert other.faults == ()


async def test_a_key_is_replaced_by_hand_at_every_edge_and_no_job_waits(
    store: SecretStore, tmp_path: Path, broker: FakeBroker
) -> None:
    await fill(store)
    files = tmp_path / "secrets.key", tmp_path / "copied.key"
    files[1].write_bytes(files[0].read_bytes())
    edges = store, make_store(tmp_path, broker, "copied.key")
    *_, old = files[0].read_text().split()
    new = base64.b64encode(bytes(range(KEY_BYTES))).decode()
    for keys in ((old, new), (new, old), (new,)):  # the steps of docs/secrets.md
        for file, edge in zip(files, edges, strict=True):
            file.write_text("\n".join(keys))
            assert await read_all(edge) == ALL
        for edge in edges:
            await edge.check_keys()
            assert edge.faults == ()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda file: file.write_text(f"{file.read_text()[:-9]}\n"), "has a line that is not a key"),
        (lambda file: file.write_text(""), "has no key"),
        (lambda file: file.unlink(), "is missing: restore it from a copy"),
    ],
    ids=["cut", "empty", "missing"],
)
async def test_an_edge_with_a_broken_key_file_keeps_the_keys_that_it_read(
    store: SecretStore, tmp_path: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    await fill(store)
    file = tmp_path / "secrets.key"
    whole = file.read_text()
    spoil(file)
    await store.check_keys()
    (fault,) = store.faults
    assert reason in fault
    assert await read_all(store) == ALL
    with pytest.raises(ProblemError, match=reason):
        await store.rotate_key()
    file.write_text(whole)
    await store.check_keys()
    assert store.faults == ()


async def test_a_key_file_that_cannot_be_written_is_left_as_it_is(
    store: SecretStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(store)
    (tmp_path / "secrets.key.lock").mkdir()
    with pytest.raises(ProblemError, match=r"secrets\.key cannot be changed .*: let the edge write") as refused:
        await store.rotate_key()
    assert refused.value.code == "not_set_up"
    assert await read_all(store) == ALL


async def test_an_old_key_stays_while_a_damaged_secret_needs_it(
    store: SecretStore, tmp_path: Path, broker: FakeBroker
) -> None:
    await fill(store)
    table = broker.connect().secrets
    row = await table.get("owner.ann.HF_TOKEN")
    assert row is not None
    await table.put("owner.eve.HF_TOKEN", row.value)
    await store.rotate_key()
    let_a_minute_pass(tmp_path / "secrets.key")
    with pytest.raises(ProblemError, match=r"stored bytes of owner\.eve\.HF_TOKEN are damaged"):
        await store.finish_rotation()
    await store.delete("eve", "HF_TOKEN")
    assert (await store.finish_rotation()).old_key_ids == ()


def test_the_key_file_is_private_and_a_bad_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "secrets.key"
    read_or_make_keys(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for text, reason in (("", "has no key"), ("# none\n", "has no key"), ("c2hvcnQ=\n", "not a key")):
        file.write_text(text)
        with pytest.raises(
            SecretKeysUnusable, match=rf"secrets\.key {reason}|secrets\.key has a line that is {reason}"
        ):
            read_or_make_keys(file)
    with pytest.raises(SecretKeysUnusable, match="correct its owner and permissions"):
        read_or_make_keys(tmp_path / "none" / "secrets.key")


def test_edges_that_start_at_once_with_one_folder_agree_on_the_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: read_or_make_keys(tmp_path / "secrets.key").sealing_id, range(8)))
    assert set(made) == {read_or_make_keys(tmp_path / "secrets.key").sealing_id}
    assert [path.name for path in tmp_path.iterdir()] == ["secrets.key"]


@pytest.mark.parametrize("value", ["tiny-1", "x" * 32_769, "with a \0 inside", "\u706f" * 2])
async def test_a_value_that_cannot_be_kept_is_refused(store: SecretStore, value: str) -> None:
    with pytest.raises(ProblemError, match="must be a text of 8 to 32768 bytes") as refused:
        await store.set("ann", "HF_TOKEN", value, "k1")
    assert refused.value.code == "input_invalid"
    assert value not in str(refused.value)


@pytest.mark.parametrize("name", ["", "1ST", "a-b", "a.b", "a" * 65, "a/../b", "a\n"])
async def test_a_name_that_is_not_a_file_name_is_refused(store: SecretStore, name: str) -> None:
    with pytest.raises(ProblemError, match="the name of a secret must have"):
        await store.set("ann", name, VALUE, "k1")
    with pytest.raises(ProblemError, match="there is no secret"):
        await store.delete("ann", name)


async def test_one_owner_does_not_fill_the_bucket(store: SecretStore, broker: FakeBroker) -> None:
    table = broker.connect().secrets
    await store.set("ann", "FIRST", VALUE, "k1")
    row = await table.get("owner.ann.FIRST")
    assert row is not None
    for number in range(1, OWNER_SECRETS_LIMIT):
        await table.put(f"owner.ann.N{number}", StoredSecret(**msgspec.structs.asdict(row.value)))
    with pytest.raises(ProblemError, match="at most 100 secrets"):
        await store.set("ann", "ONE_MORE", VALUE, "k1")
    await store.set("ann", "FIRST", "another value", "k1")
    await store.set("bob", "ONE_MORE", VALUE, "k1")


async def test_a_submit_without_its_secret_is_refused_before_a_record(fake: FakeBusServicesRig) -> None:
    await fake.announce_capabilities(endpoints=(TTS,))
    body = {"endpoint": "tts", "input": {}}
    with pytest.raises(ProblemError, match="lamplighter secrets set NAME") as refused:
        await fake.jobs.submit("ann", body)
    assert refused.value.code == "secret_missing"
    assert await fake.bus.job_store.keys() == set()
    await fake.secrets.set("ann", "HF_TOKEN", VALUE, "k1")
    record = (await fake.jobs.submit("ann", body)).entry.record
    assert VALUE.encode() not in msgspec.json.encode(record)
