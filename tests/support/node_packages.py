"""Node programs for tests: packages from npm, pinned, in a folder that git ignores."""

import fcntl
import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NODE_DIR = ROOT / ".cache" / "node"
MODULES_DIR = NODE_DIR / "node_modules"
HOW = "install Debian's nodejs and npm"
JS_CLIENT = "lamplighter-client"  # our own, linked from clients/js
# All of them at once: npm removes from a folder without a package.json what a later install does not name.
PACKAGES = (
    "tus-js-client@4.3.1",
    "typescript@5.9.3",  # 5: openapi-typescript reads its own output with it
    "openapi-typescript@7.13.0",
    "openapi-fetch@0.17.0",
    "@types/node@20.19.25",
    "axe-core@4.14.1",
)


@functools.cache
def _why_not_installed() -> str | None:
    """Return why the packages are not in MODULES_DIR, in one line; None: they are there now."""
    if not (shutil.which("node") and shutil.which("npm")):
        return f"node and npm are not here: {HOW}"
    NODE_DIR.mkdir(parents=True, exist_ok=True)
    with (NODE_DIR / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run on several workers
        missing = [package for package in PACKAGES if not _is_installed(package)]
        argv = ["npm", "install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(NODE_DIR)]
        done = subprocess.run([*argv, *PACKAGES], capture_output=True, text=True, check=False) if missing else None
        if done is not None and done.returncode:
            return f"npm cannot fetch {', '.join(missing)} ({done.stderr.strip()[-300:]}): check the network"
        link = MODULES_DIR / JS_CLIENT
        if not link.is_symlink():
            link.symlink_to(ROOT / "clients" / "js")
    return None


def _is_installed(package: str) -> bool:
    name, _, version = package.rpartition("@")
    described = MODULES_DIR / name / "package.json"
    return described.exists() and f'"version": "{version}"' in described.read_text()


def require_node_packages() -> None:
    """Skip with the reason where they are not available; fail under REQUIRE_NODE=1."""
    why = _why_not_installed()
    if why and os.environ.get("REQUIRE_NODE") == "1":
        pytest.fail(f"REQUIRE_NODE=1, but {why}", pytrace=False)
    if why:
        pytest.skip(why)
