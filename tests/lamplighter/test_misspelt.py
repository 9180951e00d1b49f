"""Settings that no process reads: retired ones, and those on pages."""

from pathlib import Path

import pytest

from edge.settings import EdgeSettings
from lamplighter.cli import process_setup
from lamplighter.cli.process_setup import SettingsFile, settings_types
from schemas.settings_loader import unknown_settings
from tests.support.doc_pages import read_blocks

DOCS = Path(__file__).parents[2] / "docs"
ENDPOINT_PAGES = {"images.md", "volumes.md"}  # their blocks are of endpoint.toml
PAGES = sorted(page for page in DOCS.glob("*.md") if page.name not in ENDPOINT_PAGES and read_blocks(page, "toml"))


def test_a_retired_setting_is_reported_and_does_not_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_setup, "RETIRED_SETTINGS", {"old_days": "records are kept by size now"})
    file = SettingsFile(Path("lamplighter.toml"), "old_days = 3")
    assert file.load(EdgeSettings, {}) == EdgeSettings()
    assert (file.retired_names(), file.unknown_names()) == (["old_days"], [])


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_setting_that_a_page_shows_is_read(page: Path) -> None:
    for text in read_blocks(page, "toml"):
        assert unknown_settings(settings_types(), text) == []
