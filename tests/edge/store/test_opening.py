"""Which store the settings name, and that all edges of an installation have the same."""

import sys
from pathlib import Path

import pytest

from bus.memory import MemoryBroker
from edge.services.agreed import AnotherStore, agree_on_store, settle
from edge.services.clock import utc_now
from edge.store.directory import DirectoryStore
from edge.store.opening import StoreMissing, StoreSettings, open_store
from edge.store.port import StoreBroken
from edge.store.remote import RemoteStore
from tests.s3 import buckets


async def test_a_folder_in_data_one_elsewhere_or_a_bucket(tmp_path: Path):
    async with open_store(StoreSettings(), tmp_path) as own:
        assert isinstance(own, DirectoryStore)
        assert (tmp_path / "assets" / "fingerprint").exists()
    async with open_store(StoreSettings(url=f"file://{tmp_path}/a%20share"), tmp_path):
        assert (tmp_path / "a share" / "fingerprint").exists()
    with buckets() as url:
        async with open_store(StoreSettings(url=url), tmp_path) as bucket:
            assert isinstance(bucket, RemoteStore)


async def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "edge.store.remote", None)
    with pytest.raises(StoreMissing, match=r"pip install 'lamplighter\[remote\]'"):
        async with open_store(StoreSettings(url="s3://bucket"), tmp_path):
            pass


@pytest.mark.parametrize(("url", "why"), [("s3://no-such-bucket/x", "bucket"), ("ftp://host/x", "names no store")])
async def test_a_url_that_leads_nowhere_says_so(tmp_path: Path, url: str, why: str):
    with buckets(), pytest.raises(StoreBroken, match=why) as raised:
        async with open_store(StoreSettings(url=url), tmp_path):
            pass
    assert "\n" not in str(raised.value)


async def test_a_second_edge_with_another_store_is_told_no():
    table = MemoryBroker().connect().agreed
    await agree_on_store(table, "one", utc_now, replace=False)
    await agree_on_store(table, "one", utc_now, replace=False)
    with pytest.raises(AnotherStore, match="another than the one"):
        await agree_on_store(table, "two", utc_now, replace=False)
    await agree_on_store(table, "two", utc_now, replace=True)
    await agree_on_store(table, "two", utc_now, replace=False)


async def test_the_first_word_holds():
    table = MemoryBroker().connect().agreed
    assert await settle(table, "secret", "first", utc_now) == "first"
    assert await settle(table, "secret", "second", utc_now) == "first"
