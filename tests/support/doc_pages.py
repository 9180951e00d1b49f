"""The code blocks of a page of docs, and running them as a reader would: the one way for all pages."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.support import runpod_client

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
RUN_TIMEOUT_S = 110

_RUNPOD = re.compile(r"^import .*\brunpod\b", re.MULTILINE)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LISTED_FENCE = re.compile(r"^( +)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def read_fences(page: Path) -> list[tuple[str, str]]:
    """Language and text of every block, in order."""
    return _FENCE.findall(page.read_text())


def read_blocks(page: Path, language: str) -> list[str]:
    """The texts of the blocks in one language."""
    return [text for found, text in read_fences(page) if found == language]


def read_listed_blocks(page: Path, language: str) -> list[str]:
    """The texts of the blocks that are indented, because they belong to an item of a list."""
    blocks = _LISTED_FENCE.findall(page.read_text())
    return [textwrap.dedent(text) for _, found, text in blocks if found == language]


def run_block(language: str, text: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a block in `folder`: sh by bash, to the first error; python with warnings as errors, except for runpod's."""
    if language == "sh":
        argv = ["bash", "-euo", "pipefail", "-c", text]
    elif _RUNPOD.search(text):
        argv = [str(runpod_client.ensure_python()), "-c", text]
    else:
        argv = [sys.executable, "-W", "error", "-c", text]
    return subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_TIMEOUT_S,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environ,
        cwd=folder,
    )
