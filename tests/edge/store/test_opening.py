"""The store that the settings name, which must be the same for all edges of an installation."""

import sys
from pathlib import Path

import pytest

from edge.core.clock import utc_now
from edge.core.installation import StoreMismatch, check_store_fingerprint, get_or_create_value
from edge.store import directory
from edge.store.directory import DirectoryStore, StorePackageMissing, StoreSettings, open_store
from edge.store.port import StoreBroken
from edge.store.remote import RemoteStore
from tests.support.fake_bus.broker import FakeBroker
from tests.support.s3_buckets import create_bucket


async def test_a_folder_in_data_one_elsewhere_or_a_bucket(tmp_path: Path):
    async with open_store(StoreSettings(), tmp_path) as own:
        assert isinstance(own, DirectoryStore)
        assert (tmp_path / "assets" / "fingerprint").exists()
    async with open_store(StoreSettings(url=f"file://{tmp_path}/a%20share"), tmp_path):
        assert (tmp_path / "a share" / "fingerprint").exists()
    with create_bucket() as url:
        async with open_store(StoreSettings(url=url), tmp_path) as bucket:
            assert isinstance(bucket, RemoteStore)


async def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, f"{directory.__package__}.remote", None)
    with pytest.raises(StorePackageMissing, match=r"pip install 'lamplighter-server\[remote\]'"):
        async with open_store(StoreSettings(url="s3://bucket"), tmp_path):
            pass


@pytest.mark.parametrize(("url", "why"), [("s3://no-such-bucket/x", "bucket"), ("ftp://host/x", "is not a store")])
async def test_a_url_that_leads_nowhere_says_so(tmp_path: Path, url: str, why: str):
    with create_bucket(), pytest.raises(StoreBroken, match=why) as raised:
        async with open_store(StoreSettings(url=url), tmp_path):
            pass
    assert "\n" not in str(raised.value)


async def test_a_second_edge_with_another_store_is_refused():
    table = FakeBroker().connect().installation_constants
    await check_store_fingerprint(table, "one", utc_now, replace=False)
    await check_store_fingerprint(table, "one", utc_now, replace=False)
    with pytest.raises(StoreMismatch, match="uses another asset store"):
        await check_store_fingerprint(table, "two", utc_now, replace=False)
    await check_store_fingerprint(table, "two", utc_now, replace=True)
    await check_store_fingerprint(table, "two", utc_now, replace=False)


async def test_the_first_word_holds():
    table = FakeBroker().connect().installation_constants
    assert await get_or_create_value(table, "secret", "first", utc_now) == "first"
    assert await get_or_create_value(table, "secret", "second", utc_now) == "first"
