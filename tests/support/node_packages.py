"""Node programs for tests: packages from npm, pinned, in a folder that git ignores; one place says what is missing."""

import functools
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NODE_DIR = ROOT / ".cache" / "node"
HOW = "install Debian's nodejs and npm"


@functools.cache
def _why_not_installed(packages: tuple[str, ...]) -> str | None:
    """Why `packages` (`name@version`) are not in FOLDER, in one line; None: they are there now."""
    if not (shutil.which("node") and shutil.which("npm")):
        return f"node and npm are not here: {HOW}"
    missing = [package for package in packages if not _is_installed(package)]
    NODE_DIR.mkdir(parents=True, exist_ok=True)
    argv = ["npm", "install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(NODE_DIR)]
    done = subprocess.run([*argv, *packages], capture_output=True, text=True, check=False) if missing else None
    if done is None or done.returncode == 0:
        return None
    return f"npm cannot fetch {', '.join(missing)} ({done.stderr.strip()[-300:]}): check the network"


def _is_installed(package: str) -> bool:
    name, _, version = package.rpartition("@")
    described = NODE_DIR / "node_modules" / name / "package.json"
    return described.exists() and f'"version": "{version}"' in described.read_text()


def require_packages(packages: Sequence[str]) -> None:
    """Skip with the reason where they cannot be had; fail under REQUIRE_NODE=1."""
    why = _why_not_installed(tuple(packages))
    if why and os.environ.get("REQUIRE_NODE") == "1":
        pytest.fail(f"REQUIRE_NODE=1, but {why}", pytrace=False)
    if why:
        pytest.skip(why)
