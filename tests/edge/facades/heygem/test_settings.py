"""The edge reads the settings that docs/facades.md shows."""

from pathlib import Path

from edge.settings import EdgeSettings
from schemas.settings_loader import load_settings
from tests.support.doc_pages import DOCS, read_blocks


def test_the_settings_that_the_page_shows_are_read():
    (text,) = read_blocks(DOCS / "facades.md", "toml")
    heygem = load_settings(EdgeSettings, text, {}).heygem
    assert (heygem.enabled, heygem.endpoint, heygem.owner) == (True, "heygem", "easy")
    assert heygem.data_root == Path("/srv/heygem/face2face")


def test_variables_win_over_the_file():
    told = load_settings(
        EdgeSettings, "", {"LAMPLIGHTER_HEYGEM__ENABLED": "1", "LAMPLIGHTER_HEYGEM__DATA_ROOT": "/srv/x"}
    )
    assert (told.heygem.enabled, told.heygem.data_root) == (True, Path("/srv/x"))
    assert load_settings(EdgeSettings, "", {}).heygem.enabled is False
