"""The code blocks of a page of docs, and running them as a reader would: the one way for all pages."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PATIENCE_S = 110

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def fences(page: Path) -> list[tuple[str, str]]:
    """Language and text of every block, in order."""
    return _FENCE.findall(page.read_text())


def blocks(page: Path, language: str) -> list[str]:
    """The texts of the blocks in one language."""
    return [text for found, text in fences(page) if found == language]


def run(language: str, text: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a block (python: a program with warnings as errors; sh: bash that ends at the first error) in `folder`."""
    argv = {"python": [sys.executable, "-W", "error", "-c", text], "sh": ["bash", "-euo", "pipefail", "-c", text]}
    return subprocess.run(
        argv[language],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environ,
        cwd=folder,
    )
