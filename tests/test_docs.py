"""Docs are run: what pages say is compared with the code, what they show is executed."""

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from deploy import alerts_doc, errors_doc, lifecycle_doc, metrics_doc, settings_doc
from edge.core import messages
from lamplighter.cli import COMMANDS, main
from lamplighter.cli.context import ClientSettings
from lamplighter.cli.log_output import SECRET_FIELDS
from lamplighter.cli.process_setup import settings_types
from schemas.lifecycle import FAILURES
from schemas.problems import PROBLEM_TYPES
from schemas.settings_schema import list_settings
from tests.architecture import EDGE_LAYERS
from tests.support.doc_pages import DOCS, ROOT, read_blocks, read_fences, run_block

OURS = re.compile(r"(\S*/)?(lamplighter|justw|just) ")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "tests/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "images").rglob("*.md")),
]


def commands(page: Path) -> list[list[str]]:
    """The words of every command of ours in the page's shell blocks."""
    text = "\n".join(read_blocks(page, "sh")).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in text.splitlines() if OURS.match(line)]


@pytest.mark.parametrize(
    ("page", "made"),
    [
        ("lifecycle", lifecycle_doc),
        ("errors", errors_doc),
        ("settings", settings_doc),
        ("metrics", metrics_doc),
        ("alerts", alerts_doc),
    ],
)
def test_a_page_that_is_made_is_what_the_tables_say(page, made):
    assert (ROOT / f"docs/{page}.md").read_text() == made.document(), "run: just docs"


@pytest.mark.parametrize("kind", [*settings_types(), ClientSettings], ids=lambda kind: kind.__name__)
def test_every_setting_has_a_meaning(kind):
    settings = list(list_settings(kind))
    assert settings
    assert [setting.name for setting in settings if not settings_doc.meaning_of(setting)] == []


FILES_NAMED_LIKE_SECRETS = {"public.key", "broker.key"}  # paths


@pytest.mark.parametrize("kind", [*settings_types(), ClientSettings], ids=lambda kind: kind.__name__)
def test_every_secret_is_marked_so_that_it_is_never_shown(kind):
    named = {s.name for s in list_settings(kind) if s.name.rpartition(".")[2] in SECRET_FIELDS}
    marked = {s.name for s in list_settings(kind) if s.is_secret}
    assert named - FILES_NAMED_LIKE_SECRETS <= marked


def test_every_code_has_a_text_and_says_what_to_do():
    assert set(errors_doc.PROBLEM_ADVICE) == set(messages.PROBLEM_TITLES_ZH) == set(PROBLEM_TYPES)
    assert set(errors_doc.FAILURE_ADVICE) == set(messages.FAILURE_TEXTS) == set(FAILURES)


def test_the_readme_shows_its_two_commands_first():
    assert [line.split("#")[0].strip() for line in read_blocks(ROOT / "README.md", "sh")[0].splitlines()] == [
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
        if isinstance(command, click.Group) and len(words) > 2:
            command = command.commands.get(words[2], command)
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


def test_python_in_the_readme_runs(tmp_path):
    for text in read_blocks(ROOT / "README.md", "python"):
        done = run_block("python", text, tmp_path)
        assert done.returncode == 0, done.stderr


def test_the_road_of_a_job_passes_at_most_60_modules():
    modules = re.findall(r"^(\d+)\. `([\w/]+\.py)`", (DOCS / "architecture.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in modules] == list(range(1, len(modules) + 1))
    assert [name for _, name in modules if not (ROOT / name).is_file()] == []
    assert len({name for _, name in modules}) == len(modules) <= 60


def test_the_layers_of_the_edge_are_those_that_are_enforced():
    block = next(text for _, text in read_fences(DOCS / "architecture.md") if "← core ←" in text)
    layers = [frozenset(name.strip() for name in layer.split(",")) for layer in block.split("←")]
    assert layers == [frozenset(name.removeprefix("edge.") for name in layer) for layer in EDGE_LAYERS]


def test_every_page_is_in_the_list_of_pages_and_the_readme_leads_there():
    listed = set(LINK.findall((DOCS / "README.md").read_text()))
    pages = {str(page.relative_to(DOCS)) for page in DOCS.glob("*.md")} - {"README.md"}
    assert pages <= listed
    assert "docs/README.md" in LINK.findall((ROOT / "README.md").read_text())
