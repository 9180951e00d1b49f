"""The Chinese pages: their commands and files are those of their English siblings, which tests run."""

import re
from pathlib import Path

import pytest

from tests.support.doc_pages import DOCS, ROOT, read_fences
from tests.test_texts import CJK, UNSPACED

ZH = DOCS / "zh"
# A page with the same sections: all blocks are the same, in the same order.
TRANSLATED = {"home-pc.md": "home-pc.md", "rented.md": "rented.md", "heygem-desktop.md": "heygem-desktop.md"}
HEYGEM = ROOT / "images" / "heygem" / "README.md"
OPERATIONS = [DOCS / f"{name}.md" for name in ("hosts", "backup", "power", "secrets", "volumes", "notify")]
# A page of its own: each block is one of these pages.
EXTRACTS = {
    "quickstart.md": [ROOT / "README.md"],
    "operations.md": OPERATIONS,
    "heygem.md": [HEYGEM],
    "notify.md": [DOCS / "notify.md", DOCS / "webhooks.md"],
    **{name: [DOCS / name] for name in ("console.md", "install.md", "secrets.md", "volumes.md")},
}
WITHOUT_COMMANDS = {"README.md", "glossary.md"}
COMMENT = re.compile(r"\s+#\s.*$", re.MULTILINE)
INDENTED = re.compile(r"(?:^ {4,}\S.*\n)+", re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return language and text of each block, without the comments, which are translated."""
    return [(language, COMMENT.sub("", text).strip()) for language, text in read_fences(page)]


def indented_blocks(page: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [re.sub(r"^ +", "", text, flags=re.MULTILINE) for text in INDENTED.findall(prose)]


def test_every_chinese_page_is_compared():
    assert {page.name for page in ZH.glob("*.md")} == TRANSLATED.keys() | EXTRACTS.keys() | WITHOUT_COMMANDS
    assert [blocks(ZH / name) for name in WITHOUT_COMMANDS] == [[]] * len(WITHOUT_COMMANDS)


@pytest.mark.parametrize("name", TRANSLATED)
def test_a_translated_page_shows_the_same_commands_and_files(name: str):
    sibling = DOCS / TRANSLATED[name]
    assert blocks(ZH / name) == blocks(sibling)
    assert indented_blocks(ZH / name) == indented_blocks(sibling)
    assert (ZH / name).read_text().count("\n## ") == sibling.read_text().count("\n## ")


@pytest.mark.parametrize("name", EXTRACTS)
def test_an_extract_shows_commands_of_its_siblings(name: str):
    shown = {block for sibling in EXTRACTS[name] for block in blocks(sibling)}
    own = blocks(ZH / name)
    assert own
    assert [block for block in own if block not in shown] == []


@pytest.mark.parametrize("page", sorted(ZH.glob("*.md")), ids=lambda page: page.name)
def test_chinese_and_latin_have_a_space_between_them(page: Path):
    prose = re.sub(r"^```.*?^```|\]\([^)]*\)|<[^>]*>", "]", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"`([^`\n]*)`", lambda code: "一" if re.search(CJK, code[1]) else "`x`", prose)
    assert [line for line in prose.splitlines() if UNSPACED.search(line)] == []


def test_the_lists_of_pages_lead_to_the_chinese_pages():
    assert "docs/zh/README.md" in (ROOT / "README.md").read_text()
    assert "zh/README.md" in (DOCS / "README.md").read_text()
    listed = set(re.findall(r"\]\((\w[\w-]*\.md)\)", (ZH / "README.md").read_text()))
    assert listed == {page.name for page in ZH.glob("*.md")} - {"README.md"}
