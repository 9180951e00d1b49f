"""A setting that nothing reads is told, and no page shows one."""

from pathlib import Path

import pytest

from lamplighter.cli.process_setup import SETTINGS_TYPES
from schemas.settings_loader import unknown_names
from tests.lamplighter.test_starting import start
from tests.support.doc_pages import read_blocks

DOCS = Path(__file__).parents[2] / "docs"
ENDPOINTS = "images.md"  # its blocks are of endpoint.toml
PAGES = sorted(page for page in DOCS.glob("*.md") if page.name != ENDPOINTS and read_blocks(page, "toml"))


def test_a_misspelt_setting_is_told_at_the_start(tmp_path: Path) -> None:
    file = tmp_path / "lamplighter.toml"
    file.write_text("retention_day = 3\n[broker]\nurl = 'nats://127.0.0.1:1'\n")
    done = start("edge", tmp_path, CONFIG=str(file), PORT="0")
    told = [line for line in done.stderr.splitlines() if "setting_unknown" in line]
    assert len(told) == 1
    assert "retention_day" in told[0]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_setting_that_a_page_shows_is_read(page: Path) -> None:
    for text in read_blocks(page, "toml"):
        assert unknown_names(SETTINGS_TYPES, text) == []
