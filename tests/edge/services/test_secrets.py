"""Secrets at the edge: whose value a job gets, what is refused, and what happens with another key file."""

import base64
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from edge.owners.secret_keys import KEY_BYTES, SecretKeysUnusable, read_or_make_keys
from edge.owners.secrets import SecretStore
from schemas.endpoint import Endpoint, Reuse
from schemas.job_environment import OWNER_SECRETS_LIMIT, StoredSecret
from schemas.problems import ProblemError
from tests.support.edge_services import FakeBusServicesRig, ManualClock
from tests.support.fake_bus.broker import FakeBroker

TTS = Endpoint(name="tts", image="tts", secrets=("HF_TOKEN",))
VALUE = "hf_the-value-of-ann"


def make_store(folder: Path, broker: FakeBroker, name: str = "secrets.key") -> SecretStore:
    return SecretStore(broker.connect().secrets, read_or_make_keys(folder / name), ManualClock())


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


@pytest.mark.parametrize("value", ["short", "x" * 32_769, "with a \0 inside", "\u706f" * 2])
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
