"""Docs are run: what pages say is compared with the code, what they show is executed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import errors_doc, lifecycle_doc
from edge.services import messages
from lamplighter.cli import COMMANDS, main
from schemas.errors import PROBLEMS
from schemas.failures import FAILURES

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "images").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in FENCE.findall(page.read_text()) if found == language]


def commands(page: Path) -> list[list[str]]:
    """The words of every command in the page's shell blocks."""
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize(("page", "made"), [("lifecycle", lifecycle_doc), ("errors", errors_doc)])
def test_a_page_that_is_made_is_what_the_tables_say(page, made):
    assert (ROOT / f"docs/{page}.md").read_text() == made.document(), "run: just docs"


def test_every_code_has_a_text_and_says_what_to_do():
    assert set(errors_doc.PROBLEM_ADVICE) == set(messages.REFUSALS) == set(PROBLEMS)
    assert set(errors_doc.FAILURE_ADVICE) == set(messages.FAILURES) == set(FAILURES)


def test_the_readme_shows_its_two_commands_first():
    assert [line.split("#")[0].strip() for line in blocks(ROOT / "README.md", "sh")[0].splitlines()] == [
        "./justw demo",
        "./justw test",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_pages_show_exist_with_their_options(page):
    """Each `lamplighter VERB --option` in a shell block is one that the command line has."""
    for words in commands(page):
        if not words[0].endswith("lamplighter") or len(words) == 1:
            continue
        verb = words[1]
        assert verb in COMMANDS, words
        command = main.get_command(None, verb)
        known = {option for parameter in command.params for option in parameter.opts}
        free = command.context_settings.get("ignore_unknown_options", False)
        assert free or {word.split("=")[0] for word in words if word.startswith("--")} <= known, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_just_verbs_that_pages_show_exist(page):
    listed = subprocess.run(["just", "--summary"], cwd=ROOT, capture_output=True, text=True, check=True)
    verbs = set(listed.stdout.split())
    for words in commands(page):
        if words[0] in {"./justw", "just"} and len(words) > 1:
            assert words[1] in verbs, words


def test_python_in_the_readme_runs():
    for text in blocks(ROOT / "README.md", "python"):
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
