"""Lock files: what is in one needs nothing that is in none, because nothing is resolved when they are installed."""

import importlib.metadata
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy import install
from lamplighter.cli import main
from schemas.version import VERSION
from tests.support import runpod_client

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# What a part begins with; where it stands alone, its packages are taken for their files.
ROOTS = {
    "runtime": [*PROJECT["dependencies"], *EXTRAS["server"]],
    **{part: EXTRAS[part] for part in ("setup", "preview", "dev", "runpod")},
}


def pinned(parts: Iterable[str]) -> dict[str, str]:
    return {entry.name: entry.version for part in parts for entry in install.read_lock(ROOT / install.LOCKS[part])}


def unmet(roots: Iterable[str], pins: Mapping[str, str], site: Path) -> list[str]:
    """Everything that is asked for, by way of extras too, and that no pin answers, by the metadata in `site`."""
    found = importlib.metadata.distributions(path=[str(site)])
    asks = {canonicalize_name(one.metadata["Name"]): one.requires or [] for one in found}
    left, seen, wrong = [("pyproject.toml", Requirement(text), "") for text in roots], set(), []
    while left:
        asker, wanted, extra = left.pop()
        name = canonicalize_name(wanted.name)
        if wanted.marker and not wanted.marker.evaluate({"extra": extra}):
            continue
        if name not in pins or not wanted.specifier.contains(pins[name], prereleases=True):
            wrong.append(f"{asker} asks for {wanted}, and the locks pin {pins.get(name)}")
            continue
        for each in {"", *wanted.extras} - {had for had_name, had in seen if had_name == name}:
            seen.add((name, each))
            left += [(name, Requirement(text), each) for text in asks[name]]
    return wrong


@pytest.mark.parametrize("verb", ["help", "up", "demo", "setup", "runpod"])
def test_what_is_locked_needs_nothing_else(verb: str):
    parts = [part for part in install.VERBS[verb].parts if part in ROOTS]
    python = runpod_client.ensure_python() if verb == "runpod" else install.VENV / "bin/python"
    (site,) = python.parents[1].glob("lib/python3*/site-packages")
    pins = pinned(parts)
    if "preview" in parts:
        (torch,) = (text for text in EXTRAS["preview"] if text.startswith("torch=="))
        pins["torch"] = torch.removeprefix("torch==")
    assert len(pins) > len(parts)
    assert not unmet([text for part in parts for text in ROOTS[part]], pins, site)


def test_an_unmet_need_is_found():
    (site,) = (install.VENV / "lib").glob("python3*/site-packages")
    pins = pinned(["setup", "runtime"])
    assert unmet(["uvicorn[standard]"], pins, site) == []
    del pins["httptools"]  # what the extra brings
    (wrong,) = unmet(["uvicorn[standard]"], pins, site)
    assert wrong.startswith("uvicorn asks for httptools")
    (wrong,) = unmet(["httpx2>=99"], pins, site)
    assert wrong.startswith("pyproject.toml asks for httpx2>=99")


@pytest.mark.parametrize("part", install.LOCKS)
def test_every_entry_of_a_lock_is_read_with_its_size(part: str):
    text = (ROOT / install.LOCKS[part]).read_text()
    entries = list(install.ENTRY.finditer(text))
    assert len(entries) == len(re.findall(r"^[\w.-]+==", text, re.MULTILINE)) > 0
    assert all(install.SIZE.search(entry["rest"]) for entry in entries)


def test_serving_takes_few_packages():
    parts = install.VERBS["up"].parts
    pins = pinned(part for part in parts if part in install.LOCKS)
    assert len(pins) <= 60
    assert "torch" not in {*pins, *parts}


def test_the_version_is_one_everywhere():
    assert importlib.metadata.version("lamplighter") == VERSION
    assert CliRunner().invoke(main, ["--version"]).output == f"lamplighter, version {VERSION}\n"


def test_the_licence_is_the_one_that_is_said():
    assert (PROJECT["license"], PROJECT["license-files"]) == ("MIT", ["LICENSE"])
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n")
